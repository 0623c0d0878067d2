//! A queue that is taken from in rounds, with at most one item of each user in a round. So a user with many items delays
//! mostly itself: another user's first item waits for at most two items of each user before it. The items of a user keep
//! their order.
//!
//! Items of the server itself have no user. They join the round that is open, in the order in which they come.

use std::collections::{HashMap, VecDeque};

use crate::domain::UserId;

/// Number of places for items that an emptied round keeps allocated, and of users that an empty queue does.
const KEPT_CAPACITY: usize = 1024;

/// Why an item was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFull {
    /// Its user has its share of the queue.
    OfUser,
    /// The queue is full, and no user has more items than this one.
    OfAll,
}

/// A bounded queue of items, each of a user or of the server itself.
#[derive(Debug)]
pub struct FairQueue<T> {
    capacity: usize,
    /// Maximum number of items of one user.
    share: usize,
    /// The rounds, the next one first. There is always one; only the first may be empty.
    rounds: VecDeque<VecDeque<(Option<UserId>, T)>>,
    /// The number of the first round.
    first: u64,
    /// Whether items of the first round were taken. Then nothing joins it, because otherwise new items could delay those
    /// of the later rounds forever.
    has_begun: bool,
    /// Only users with items.
    users: HashMap<UserId, UserItems>,
    len: usize,
}

/// The items of one user. They are in consecutive rounds.
#[derive(Debug)]
struct UserItems {
    count: usize,
    /// The number of the round of the newest.
    last: u64,
}

impl<T> FairQueue<T> {
    /// An empty queue of at most `capacity` items, of which a user may have `share`.
    pub fn new(capacity: usize, share: usize) -> Self {
        Self {
            capacity,
            share,
            rounds: VecDeque::from([VecDeque::new()]),
            first: 0,
            has_begun: false,
            users: HashMap::new(),
            len: 0,
        }
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds an item. If the queue is full, the newest item of a user with more items than this one is removed and
    /// returned.
    ///
    /// # Errors
    /// If the user has its share, or the queue is full and no user has more items than this one.
    pub fn push(&mut self, user: Option<UserId>, item: T) -> Result<Option<T>, QueueFull> {
        let removed = if self.len < self.capacity { None } else { Some(self.make_room(user)?) };
        let open = self.open_round();
        let round = match user {
            None => open,
            Some(user) => {
                let items = self.users.entry(user).or_insert(UserItems { count: 0, last: 0 });
                if items.count >= self.share {
                    return Err(QueueFull::OfUser);
                }
                items.last = if items.count == 0 { open } else { items.last + 1 };
                items.count += 1;
                items.last
            }
        };
        let index = usize::try_from(round - self.first).unwrap_or(usize::MAX);
        // At most one is missing: the items of a user are in consecutive rounds.
        while self.rounds.len() <= index {
            self.rounds.push_back(VecDeque::new());
        }
        self.rounds[index].push_back((user, item));
        self.len += 1;
        Ok(removed)
    }

    /// The number of the round that an item of a user without items joins.
    fn open_round(&self) -> u64 {
        self.first + u64::from(self.has_begun)
    }

    /// Removes the newest item of the last round, if that comes after the round of the next item of this user.
    fn make_room(&mut self, user: Option<UserId>) -> Result<T, QueueFull> {
        let round = match user.and_then(|user| self.users.get(&user)) {
            Some(items) if items.count >= self.share => return Err(QueueFull::OfUser),
            Some(items) => items.last + 1,
            None => self.open_round(),
        };
        if self.first + self.rounds.len() as u64 <= round + 1 {
            return Err(QueueFull::OfAll);
        }
        let last = self.rounds.back_mut().and_then(VecDeque::pop_back);
        let (user, item) = last.ok_or(QueueFull::OfAll)?;
        self.len -= 1;
        if let Some(user) = user {
            self.count_out(user);
            if let Some(items) = self.users.get_mut(&user) {
                items.last -= 1;
            }
        }
        if self.rounds.len() > 1 && self.rounds.back().is_some_and(VecDeque::is_empty) {
            self.rounds.pop_back();
        }
        Ok(item)
    }

    /// Moves up to `most` items to `taken`, in the order in which they are to be served.
    pub fn take(&mut self, most: usize, taken: &mut Vec<T>) {
        for _ in 0..most {
            if self.rounds.front().is_some_and(VecDeque::is_empty) {
                self.next_round();
            }
            let Some((user, item)) = self.rounds.front_mut().and_then(VecDeque::pop_front) else { break };
            self.has_begun = true;
            self.len -= 1;
            if let Some(user) = user {
                self.count_out(user);
            }
            taken.push(item);
        }
    }

    /// Ends the first round, which is empty.
    fn next_round(&mut self) {
        self.first += 1;
        self.has_begun = false;
        if self.rounds.len() > 1 {
            self.rounds.pop_front();
        } else if let Some(round) = self.rounds.front_mut() {
            round.shrink_to(KEPT_CAPACITY);
        }
    }

    fn count_out(&mut self, user: UserId) {
        if let Some(items) = self.users.get_mut(&user) {
            items.count -= 1;
            if items.count == 0 {
                self.users.remove(&user);
                if self.users.is_empty() {
                    self.users.shrink_to(KEPT_CAPACITY);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn user(n: u8) -> UserId {
        UserId(Uuid::from_u128(n.into()))
    }

    /// Items are numbered by user.
    fn push(queue: &mut FairQueue<(u8, u32)>, of: u8, numbers: std::ops::Range<u32>) {
        for number in numbers {
            assert_eq!(queue.push(Some(user(of)), (of, number)), Ok(None));
        }
    }

    fn take(queue: &mut FairQueue<(u8, u32)>, most: usize) -> Vec<(u8, u32)> {
        let mut taken = Vec::new();
        queue.take(most, &mut taken);
        taken
    }

    #[test]
    fn users_take_turns_and_each_keeps_its_order() {
        let mut queue = FairQueue::new(100, 100);
        push(&mut queue, 1, 0..4);
        push(&mut queue, 2, 0..2);
        push(&mut queue, 3, 0..1);
        assert_eq!(take(&mut queue, 4), [(1, 0), (2, 0), (3, 0), (1, 1)]);
        // The second round has begun, so this waits for the third.
        push(&mut queue, 3, 1..2);
        assert_eq!(take(&mut queue, 100), [(2, 1), (1, 2), (3, 1), (1, 3)]);
        assert_eq!((queue.len(), queue.users.len()), (0, 0));
    }

    #[test]
    fn users_that_always_have_one_item_do_not_delay_the_second_item_of_another_forever() {
        let mut queue = FairQueue::new(100, 100);
        push(&mut queue, 9, 0..2);
        push(&mut queue, 1, 0..1);
        push(&mut queue, 2, 0..1);
        let mut taken = Vec::new();
        for next in 1..10 {
            for served in take(&mut queue, 1) {
                taken.push(served);
                if served.0 != 9 {
                    push(&mut queue, served.0, next..next + 1);
                }
            }
        }
        let position = taken.iter().position(|served| *served == (9, 1)).unwrap();
        assert!(position <= 5, "{taken:?}");
    }

    #[test]
    fn a_full_queue_removes_the_newest_item_of_the_user_that_has_most() {
        let mut queue = FairQueue::new(6, 100);
        push(&mut queue, 1, 0..4);
        push(&mut queue, 2, 0..2);
        assert_eq!(queue.push(Some(user(3)), (3, 0)), Ok(Some((1, 3))));
        assert_eq!(queue.push(Some(user(1)), (1, 4)), Err(QueueFull::OfAll), "it has most itself");
        assert_eq!(queue.push(Some(user(3)), (3, 1)), Ok(Some((1, 2))));
        assert_eq!(queue.push(Some(user(3)), (3, 2)), Err(QueueFull::OfAll), "nobody has more than two");
        assert_eq!(queue.push(None, (0, 0)), Ok(Some((3, 1))));
        assert_eq!(take(&mut queue, 6), [(1, 0), (2, 0), (3, 0), (0, 0), (1, 1), (2, 1)]);
    }

    #[test]
    fn a_user_may_have_its_share() {
        let mut queue = FairQueue::new(6, 2);
        push(&mut queue, 1, 0..2);
        assert_eq!(queue.push(Some(user(1)), (1, 2)), Err(QueueFull::OfUser));
        push(&mut queue, 2, 0..1);
        assert_eq!(take(&mut queue, 1), [(1, 0)]);
        push(&mut queue, 1, 2..3);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Take(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![6 => (0..5u8).prop_map(Step::Push), 1 => (1..8usize).prop_map(Step::Take)];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// User 0 is the server itself.
        #[test]
        fn nothing_is_lost_and_no_user_waits_for_more_than_two_items_of_another(steps in steps()) {
            let mut queue = FairQueue::new(12, 8);
            let mut next = [0u32; 5];
            // What is queued of each user, in order, and how often each user was served since the first item of another
            // became the first.
            let mut queued: [VecDeque<u32>; 5] = Default::default();
            let mut passed = [[0usize; 5]; 5];
            for step in steps {
                match step {
                    Step::Push(of) => {
                        let (user, item) = ((of > 0).then(|| user(of)), (of, next[usize::from(of)]));
                        let of = usize::from(of);
                        next[of] += 1;
                        let longest = queued[1..].iter().map(VecDeque::len).max().unwrap();
                        match queue.push(user, item) {
                            Ok(removed) => {
                                if let Some((from, number)) = removed {
                                    prop_assert_eq!(queued[usize::from(from)].pop_back(), Some(number));
                                    prop_assert!(queued[of].len() < longest || of == 0);
                                }
                                if queued[of].is_empty() {
                                    passed[of] = [0; 5];
                                }
                                queued[of].push_back(item.1);
                            }
                            Err(QueueFull::OfUser) => prop_assert_eq!(queued[of].len(), 8),
                            Err(QueueFull::OfAll) => prop_assert_eq!(queue.len(), 12),
                        }
                    }
                    Step::Take(most) => {
                        let before = queue.len();
                        let taken = take(&mut queue, most);
                        prop_assert_eq!(taken.len(), most.min(before));
                        for (of, number) in taken {
                            let of = usize::from(of);
                            prop_assert_eq!(queued[of].pop_front(), Some(number));
                            passed[of] = [0; 5];
                            for waiting in (1..5).filter(|waiting| of > 0 && *waiting != of) {
                                passed[waiting][of] += 1;
                                prop_assert!(queued[waiting].is_empty() || passed[waiting][of] <= 2);
                            }
                        }
                    }
                }
                prop_assert_eq!(queue.len(), queued.iter().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(queue.users.len(), queued[1..].iter().filter(|queued| !queued.is_empty()).count());
            }
        }
    }
}
