//! Permits that go to the user who holds the fewest, among equals to the one who has waited longest. A third of them goes
//! only to users who hold none. So a few users cannot take all, and a user who holds none waits for at most one request of
//! each other user.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::StoreError;
use crate::domain::UserId;

/// Number of users for which an emptied table keeps places.
const KEPT_CAPACITY: usize = 1024;

/// A number of permits. Clones share them.
#[derive(Clone)]
pub struct FairPermits {
    state: Arc<Mutex<PermitsState>>,
}

struct PermitsState {
    /// Number of permits that nobody holds.
    free: usize,
    /// How many of them stay for users who hold none.
    reserve: usize,
    /// Only users that hold permits or wait for one.
    users: HashMap<UserId, PermitsOfUser>,
    /// The users that wait, in the order in which they get permits.
    turns: BTreeMap<Turn, UserId>,
    /// How often a user has begun to wait.
    turns_taken: u64,
}

/// The number of permits that a user holds, and when it began to wait for another.
type Turn = (usize, u64);

#[derive(Default)]
struct PermitsOfUser {
    held: usize,
    waiting: VecDeque<oneshot::Sender<FairPermit>>,
    /// When it began to wait, if it waits.
    since: u64,
}

/// A permit that a user holds. Dropping it gives it back.
#[must_use = "dropping a permit gives it back at once"]
pub struct FairPermit {
    permits: FairPermits,
    user: UserId,
}

impl FairPermits {
    /// That many permits.
    #[must_use]
    pub fn new(permits: usize) -> Self {
        let state = PermitsState {
            free: permits,
            reserve: permits / 3,
            users: HashMap::new(),
            turns: BTreeMap::new(),
            turns_taken: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes a permit for a user. Waits until there is one and no other user comes first. The caller bounds the number of
    /// requests of a user that wait.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] never happens: a permit that is given back is handed on.
    pub async fn acquire(&self, user: UserId) -> Result<FairPermit, StoreError> {
        let waiting = {
            let mut state = self.state();
            if state.may_take(state.users.get(&user).map_or(0, |of_user| of_user.held)) {
                state.free -= 1;
                state.users.entry(user).or_default().held += 1;
                return Ok(FairPermit { permits: self.clone(), user });
            }
            state.wait(user)
        };
        waiting.await.map_err(|_| StoreError::Overloaded)
    }

    fn state(&self) -> MutexGuard<'_, PermitsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermitsState {
    /// Whether there is a permit for a user who holds that many.
    fn may_take(&self, held: usize) -> bool {
        self.free > if held == 0 { 0 } else { self.reserve }
    }

    fn wait(&mut self, user: UserId) -> oneshot::Receiver<FairPermit> {
        let (waker, waiting) = oneshot::channel();
        let of_user = self.users.entry(user).or_default();
        if of_user.waiting.is_empty() {
            of_user.since = self.turns_taken;
            self.turns_taken += 1;
            self.turns.insert((of_user.held, of_user.since), user);
        }
        of_user.waiting.retain(|waiting| !waiting.is_closed());
        of_user.waiting.push_back(waker);
        waiting
    }

    /// Takes a permit back from a user. Returns who gets it.
    fn give_back(&mut self, user: UserId) -> Option<(UserId, oneshot::Sender<FairPermit>)> {
        self.free += 1;
        if let Some(of_user) = self.users.get_mut(&user) {
            let turn = (of_user.held, of_user.since);
            of_user.held -= 1;
            if !of_user.waiting.is_empty() {
                self.turns.remove(&turn);
                self.turns.insert((of_user.held, of_user.since), user);
            } else if of_user.held == 0 {
                self.users.remove(&user);
            }
        }
        while let Some((&turn, &user)) = self.turns.first_key_value()
            && self.may_take(turn.0)
        {
            self.turns.remove(&turn);
            let Some(of_user) = self.users.get_mut(&user) else { continue };
            of_user.waiting.retain(|waiting| !waiting.is_closed());
            let waker = of_user.waiting.pop_front();
            if waker.is_some() {
                self.free -= 1;
                of_user.held += 1;
            }
            if !of_user.waiting.is_empty() {
                of_user.since = self.turns_taken;
                self.turns_taken += 1;
                self.turns.insert((of_user.held, of_user.since), user);
            } else if of_user.held == 0 {
                self.users.remove(&user);
            }
            if let Some(waker) = waker {
                return Some((user, waker));
            }
        }
        if self.users.is_empty() {
            self.users.shrink_to(KEPT_CAPACITY);
        }
        None
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        let next = self.permits.state().give_back(self.user);
        if let Some((user, waker)) = next {
            // If it has stopped waiting meanwhile, the permit is dropped here, which gives it to the next.
            let _ = waker.send(Self { permits: self.permits.clone(), user });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    type Waiting = Pin<Box<dyn Future<Output = FairPermit>>>;

    /// Asks for a permit of the user, and waits in the queue if there is none.
    fn ask(permits: &FairPermits, user: u128) -> Waiting {
        let permits = permits.clone();
        let mut asked: Waiting =
            Box::pin(async move { permits.acquire(UserId(Uuid::from_u128(user))).await.unwrap() }.fuse());
        // The first poll queues it. A permit that it gets at once is kept for the next poll.
        match (&mut asked).now_or_never() {
            Some(permit) => Box::pin(std::future::ready(permit)),
            None => asked,
        }
    }

    fn has(asked: &mut Waiting) -> Option<FairPermit> {
        asked.now_or_never()
    }

    fn is_empty(permits: &FairPermits, free: usize) -> bool {
        let state = permits.state();
        state.free == free && state.users.is_empty() && state.turns.is_empty()
    }

    #[test]
    fn a_newcomer_waits_for_one_request_of_each_other_user() {
        let permits = FairPermits::new(2);
        let mut held: VecDeque<_> = (1..3).map(|user| has(&mut ask(&permits, user)).unwrap()).collect();
        let mut waiting: Vec<_> = (0..6).map(|n| ask(&permits, 1 + n % 2)).collect();
        waiting.push(ask(&permits, 3));
        for expected in [1, 2, 3, 1] {
            drop(held.pop_front());
            let (place, permit) = waiting.iter_mut().enumerate().find_map(|(at, one)| Some((at, has(one)?))).unwrap();
            assert_eq!(permit.user, UserId(Uuid::from_u128(expected)));
            drop(waiting.remove(place));
            held.push_back(permit);
        }
        drop((held, waiting));
        assert!(is_empty(&permits, 2));
    }

    #[test]
    fn users_get_permits_in_turns_and_each_in_its_own_order() {
        let permits = FairPermits::new(1);
        let mut held = has(&mut ask(&permits, 9)).unwrap();
        let mut waiting: Vec<_> = [1, 1, 1, 2, 2, 3].map(|user| Some((user, ask(&permits, user)))).into();
        for expected in [(0, 1), (3, 2), (5, 3), (1, 1), (4, 2), (2, 1)] {
            drop(held);
            let served = waiting.iter_mut().enumerate().find_map(|(place, slot)| {
                let (user, asked) = slot.as_mut()?;
                let permit = has(asked)?;
                let served = (place, *user);
                *slot = None;
                Some((served, permit))
            });
            let (served, permit) = served.expect("one of them has it");
            assert_eq!(served, expected);
            held = permit;
        }
        drop(held);
        assert!(is_empty(&permits, 1));
    }

    #[test]
    fn a_third_stays_for_users_who_hold_none() {
        let permits = FairPermits::new(6);
        let mut greedy: Vec<_> = (0..10).map(|n| ask(&permits, 1 + n % 2)).collect();
        let held: Vec<_> = greedy.iter_mut().filter_map(has).collect();
        assert_eq!(held.len(), 4);
        let newcomers: Vec<_> = (3..5).map(|user| has(&mut ask(&permits, user)).unwrap()).collect();
        assert!(ask(&permits, 5).now_or_never().is_none(), "all six are taken");
        drop(newcomers);
        assert!(greedy.iter_mut().skip(4).all(|waiting| has(waiting).is_none()), "two are free, for others");
        drop(held);
        let held: Vec<_> = greedy.iter_mut().skip(4).filter_map(has).collect();
        assert_eq!(held.len(), 4);
        drop((held, greedy));
        assert!(is_empty(&permits, 6));
    }

    #[test]
    fn those_who_have_given_up_are_passed_over() {
        let permits = FairPermits::new(1);
        let held = has(&mut ask(&permits, 1)).unwrap();
        let (gone, mut waiting) = (ask(&permits, 2), ask(&permits, 3));
        drop(gone);
        drop(held);
        let held = has(&mut waiting).unwrap();
        let unread = ask(&permits, 2);
        // It is handed over, and given up before it is seen.
        drop(held);
        drop(unread);
        assert!(is_empty(&permits, 1));
    }
}
