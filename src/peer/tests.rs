mod net;
mod relayed;
mod session;
mod sim;
mod trust;
