mod net;
mod session;
mod sim;
mod trust;
