//! The places for sockets on a node, divided by user and network, so that few accounts or one network cannot hold all of
//! them.
//!
//! A closing socket keeps its place until its connection has ended, which a client can delay by half a minute. So a user
//! may hold some places more than it may have devices, and beyond that loses the oldest closing socket.
//!
//! A full node gives up the oldest socket of the network that holds most, if the newcomer's network holds at least two
//! fewer; otherwise it refuses the newcomer. So every place that is given up makes the shares more even, and clients of one
//! network (a company, a proxy that is not trusted) do not displace each other. Which network holds most is judged by the
//! /32 of IPv6, as for memory.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::shares::{Account, Exhausted, Holder, SharedBudget};
use crate::metrics::{Limit, Metrics, SocketShare};

/// Counts the sockets of a node, and gives them their places. Clones share the count.
#[derive(Clone, Debug)]
pub struct Seats {
    budget: SharedBudget,
    metrics: Arc<Metrics>,
}

/// The place of one socket. Dropping it gives the place back.
#[derive(Debug)]
pub struct Seat(Account);

impl Seats {
    /// `limit` places, of which a user may hold `user_limit`.
    #[must_use]
    pub fn new(limit: usize, user_limit: usize, metrics: Arc<Metrics>) -> Self {
        Self { budget: SharedBudget::of_places(limit, user_limit), metrics }
    }

    /// Takes a place. Counts what is given up for it, or that there was none.
    ///
    /// # Errors
    /// If all places are in use, and no network holds at least two more than this one.
    pub fn take(&self, holder: Holder) -> Result<Seat, Exhausted> {
        let account = self.budget.account(holder);
        match account.take_place() {
            Ok(None) => {}
            Ok(Some(share)) => {
                self.metrics.sockets_given_up.inc(share);
                if share == SocketShare::Network {
                    self.metrics.connections_refused.inc(Limit::Sockets);
                }
            }
            Err(Exhausted) => {
                self.metrics.connections_refused.inc(Limit::Sockets);
                return Err(Exhausted);
            }
        }
        Ok(Seat(account))
    }

    /// The number of open sockets, including closing ones.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.budget.in_use()
    }

    /// The number of places.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.budget.limit()
    }
}

impl Seat {
    /// Records that the socket is closing: its place is given up before those of open ones of its user.
    pub fn note_closing(&self) {
        self.0.retire();
    }

    /// Ready once the place was given up. Only one task at a time may wait.
    pub fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_given_up(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{ClientNetwork, UserId};

    fn holder(network: u8, user: u128) -> Holder {
        Holder { network: ClientNetwork::V4([192, 0, network]), user: UserId(Uuid::from_u128(user)) }
    }

    fn seats(limit: usize, user_limit: usize) -> Seats {
        Seats::new(limit, user_limit, Arc::new(Metrics::new()))
    }

    fn given_up(seats: &[Seat]) -> Vec<bool> {
        let cx = Context::from_waker(noop_waker_ref());
        seats.iter().map(|seat| seat.poll_given_up(&cx).is_ready()).collect()
    }

    #[test]
    fn beyond_its_share_a_user_loses_its_oldest_closing_socket_and_then_its_oldest() {
        let seats = seats(100, 3);
        let mut own: Vec<_> = (0..3).map(|network| seats.take(holder(network, 1)).unwrap()).collect();
        let other = [seats.take(holder(0, 2)).unwrap()];
        own[2].note_closing();
        own[1].note_closing();
        own.push(seats.take(holder(0, 1)).unwrap());
        assert_eq!(given_up(&own), [false, true, false, false]);
        own.push(seats.take(holder(0, 1)).unwrap());
        assert_eq!(given_up(&own), [false, true, true, false, false]);
        own.push(seats.take(holder(0, 1)).unwrap());
        assert_eq!(given_up(&own), [true, true, true, false, false, false]);
        assert_eq!((given_up(&other), seats.in_use()), (vec![false], 4));
        assert_eq!(seats.metrics.sockets_given_up.get(SocketShare::User), 3);
        drop(own);
        assert_eq!(seats.in_use(), 1);
    }

    #[test]
    fn a_full_node_gives_up_the_oldest_socket_of_the_network_that_holds_most_until_the_shares_are_even() {
        let seats = seats(6, 100);
        let crowd: Vec<_> = (0..6).map(|user| seats.take(holder(1, user)).unwrap()).collect();
        assert!(seats.take(holder(1, 9)).is_err(), "its own network holds most");
        let few: Vec<_> = (0..3).map(|user| seats.take(holder(2, 10 + user)).unwrap()).collect();
        assert_eq!(given_up(&crowd), [true, true, true, false, false, false]);
        for network in [1, 2] {
            assert!(seats.take(holder(network, 20)).is_err(), "both hold three");
        }
        let third = [seats.take(holder(3, 30)).unwrap(), seats.take(holder(3, 31)).unwrap()];
        assert!(seats.take(holder(3, 32)).is_err(), "all hold two");
        assert_eq!((given_up(&third), seats.in_use()), (vec![false, false], 6));
        let metrics = &seats.metrics;
        assert_eq!(metrics.sockets_given_up.get(SocketShare::Network), 5);
        assert_eq!(metrics.connections_refused.get(Limit::Sockets), 5 + 4);
        drop(few);
    }

    #[test]
    fn a_wide_ipv6_network_counts_as_one() {
        let seats = seats(4, 100);
        let v6 = |narrow: u8, user| {
            let network = ClientNetwork::V6([0x20, 0x01, 0x0d, 0xb8, 0, narrow]);
            Holder { network, user: UserId(Uuid::from_u128(user)) }
        };
        let wide: Vec<_> = (0..3u8).map(|narrow| seats.take(v6(narrow, narrow.into())).unwrap()).collect();
        let other = [seats.take(holder(1, 50)).unwrap()];
        assert!(seats.take(v6(9, 9)).is_err(), "its own /32 holds most");
        let _another = seats.take(holder(2, 51)).unwrap();
        assert_eq!((given_up(&wide).into_iter().filter(|is| *is).count(), given_up(&other)), (1, vec![false]));
    }
}
