//! The policy language, proved by an evaluator of its own: random policies as YAML text, random
//! identities, addresses and workloads, and packets of both directions.
mod aim;
mod coverage;
mod differential;
mod generate;
mod model;
mod naive;
mod policies;
mod refusals;
mod street;
mod yaml;
