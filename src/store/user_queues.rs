//! Divides work by user: each user has a number of places, and a queue of its own for what waits for them. So a user with
//! much work delays only itself. Look-ups of tokens and polls of approvals, whose user is not known yet, are divided by token
//! and by request in the same way.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::StoreError;
use crate::{
    domain::{Refusal, UserId},
    metrics::Metrics,
};

/// Number of operations of a user or token that may wait for a place.
const WAITING: usize = 64;
/// Number of users for which the table stays allocated when nobody holds a place.
const KEPT_CAPACITY: usize = 1024;

/// The places and queues of all users, or of whatever `K` identifies. Clones share them.
#[derive(Clone)]
pub struct UserQueues<K: Copy + Eq + Hash = UserId> {
    state: Arc<QueuesState<K>>,
}

struct QueuesState<K: Copy + Eq + Hash> {
    /// Number of places of each user.
    places: usize,
    /// Only users that hold places.
    users: Mutex<HashMap<K, UserQueue<K>>>,
    metrics: Arc<Metrics>,
}

struct UserQueue<K: Copy + Eq + Hash> {
    /// Number of places in use.
    used: usize,
    waiting: VecDeque<oneshot::Sender<Place<K>>>,
}

/// A place of a user. Dropping it passes it on to the next operation of the user.
#[must_use = "dropping a place gives it back at once"]
pub struct Place<K: Copy + Eq + Hash = UserId> {
    state: Arc<QueuesState<K>>,
    /// `None` once the place has been passed on.
    user: Option<K>,
}

impl<K: Copy + Eq + Hash> UserQueues<K> {
    /// Gives each user this many places. Counts what it refuses.
    #[must_use]
    pub fn new(places: usize, metrics: Arc<Metrics>) -> Self {
        Self { state: Arc::new(QueuesState { places, users: Mutex::default(), metrics }) }
    }

    /// Takes a place of the user, in the order of the calls. Waits until one is free.
    ///
    /// # Errors
    /// `unavailable` if 64 operations of the user wait already.
    pub async fn enter(&self, user: K) -> Result<Place<K>, StoreError> {
        let waiting = {
            let mut users = self.state.users();
            let queue = users.entry(user).or_insert_with(|| UserQueue { used: 0, waiting: VecDeque::new() });
            if queue.used < self.state.places {
                queue.used += 1;
                return Ok(Place { state: self.state.clone(), user: Some(user) });
            }
            if queue.waiting.len() >= WAITING {
                queue.waiting.retain(|waiting| !waiting.is_closed());
            }
            if queue.waiting.len() >= WAITING {
                self.state.metrics.user_queue_full.inc();
                return Err(Refusal::Unavailable.into());
            }
            let (waker, waiting) = oneshot::channel();
            queue.waiting.push_back(waker);
            waiting
        };
        // Cannot fail: a queue with waiting operations has a place in use, which is passed on.
        waiting.await.map_err(|_| StoreError::Overloaded)
    }
}

impl<K: Copy + Eq + Hash> QueuesState<K> {
    fn users(&self) -> MutexGuard<'_, HashMap<K, UserQueue<K>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let Some(user) = self.user.take() else { return };
        let mut users = self.state.users();
        let Some(queue) = users.get_mut(&user) else { return };
        while let Some(next) = queue.waiting.pop_front() {
            match next.send(Self { state: self.state.clone(), user: Some(user) }) {
                Ok(()) => return,
                // It no longer waits.
                Err(mut place) => place.user = None,
            }
        }
        queue.used -= 1;
        if queue.used == 0 {
            users.remove(&user);
            if users.is_empty() {
                users.shrink_to(KEPT_CAPACITY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    fn user(n: u128) -> UserId {
        UserId(Uuid::from_u128(n))
    }

    fn queues(places: usize) -> UserQueues {
        UserQueues::new(places, Arc::default())
    }

    #[tokio::test]
    async fn operations_of_a_user_wait_for_a_place_in_their_order() {
        let queues = queues(2);
        let first = queues.enter(user(1)).await.unwrap();
        let _second = queues.enter(user(1)).await.unwrap();
        let mut third = Box::pin(queues.enter(user(1)));
        let mut fourth = Box::pin(queues.enter(user(1)));
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        assert!(queues.enter(user(2)).now_or_never().is_some(), "another user has places of its own");
        drop(first);
        assert!((&mut fourth).now_or_never().is_none());
        let third = third.await.unwrap();
        drop(third);
        drop(fourth.await.unwrap());
    }

    #[tokio::test]
    async fn at_most_64_wait_and_those_that_have_given_up_do_not_count() {
        let queues = queues(1);
        let place = queues.enter(user(1)).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(queues.enter(user(1)))).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        assert!(matches!(queues.enter(user(1)).await, Err(StoreError::Refused(Refusal::Unavailable))));
        assert_eq!(queues.state.metrics.user_queue_full.get(), 1);
        waiting.truncate(10);
        let mut last = Box::pin(queues.enter(user(1)));
        assert!((&mut last).now_or_never().is_none());
        drop(waiting);
        drop(place);
        drop(last.await.unwrap());
        assert!(queues.state.users().is_empty());
    }

    #[tokio::test]
    async fn a_place_that_was_passed_on_and_not_taken_is_given_back() {
        let queues = queues(1);
        let place = queues.enter(user(1)).await.unwrap();
        let mut waiting = Box::pin(queues.enter(user(1)));
        assert!((&mut waiting).now_or_never().is_none());
        drop(place);
        drop(waiting);
        assert!(queues.state.users().is_empty());
        assert!(queues.enter(user(1)).now_or_never().is_some());
    }
}
