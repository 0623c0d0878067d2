//! Looks up the addresses of host names.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
};

use tokio::{sync::Semaphore, task};

/// The result of a look-up: all addresses of a name.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Looks up host names. Called once for every connection to a name; the sender checks the addresses.
pub trait Resolve: Send + Sync + 'static {
    /// Looks up the addresses of `name`.
    fn resolve(&self, name: &str) -> Resolving;
}

/// The resolver of the operating system. It blocks a thread for each look-up, for as long as its configuration says, so
/// the number of look-ups at a time is limited.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    look_ups: Arc<Semaphore>,
}

impl SystemResolver {
    /// A resolver for at most `look_ups` look-ups at a time. Others wait.
    #[must_use]
    pub fn new(look_ups: usize) -> Self {
        Self { look_ups: Arc::new(Semaphore::new(look_ups)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> Resolving {
        let (look_ups, name) = (Arc::clone(&self.look_ups), name.to_owned());
        Box::pin(async move {
            let permit = look_ups.acquire_owned().await.map_err(io::Error::other)?;
            let look_up = move || {
                // Kept until the thread is free, even if nobody waits for the result any more.
                let _permit = permit;
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            };
            task::spawn_blocking(look_up).await.map_err(io::Error::other)?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn names_are_looked_up() {
        let addresses = SystemResolver::new(1).resolve("localhost").await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_wait_for_others_and_not_for_those_of_another_resolver() {
        let (busy, free) = (SystemResolver::new(1), SystemResolver::new(1));
        let under_way = Arc::clone(&busy.look_ups).acquire_owned().await.unwrap();
        let waiting = busy.resolve("localhost");
        assert!(tokio::time::timeout(Duration::from_mins(1), waiting).await.is_err());
        assert!(free.resolve("localhost").await.is_ok());
        drop(under_way);
        assert!(busy.resolve("localhost").await.is_ok());
    }
}
