//! Looks up the addresses of host names.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    pin::Pin,
};

use tokio::task;

/// The result of a look-up: all addresses of a name.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Looks up host names. The sender looks up a name for every connection to it, and checks the addresses.
pub trait Resolve: Send + Sync + 'static {
    /// Looks up the addresses of `name`.
    fn resolve(&self, name: &str) -> Resolving;
}

/// The resolver of the operating system. It blocks a thread for each look-up, for as long as its configuration says, even
/// if nobody waits for the result any more.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> Resolving {
        let name = name.to_owned();
        Box::pin(async move {
            let look_up = move || {
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            };
            task::spawn_blocking(look_up).await.map_err(io::Error::other)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up() {
        let addresses = SystemResolver.resolve("localhost").await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }
}
