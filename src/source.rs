//! Where local workloads come from.
