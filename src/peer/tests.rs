mod net;
mod session;
mod sim;
