//! Limits on resources that all connections of a node share, such as bytes of memory or open connections.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A node-wide limit on one resource. Clones share it.
///
/// Reserved units are given back when the [`Reservation`] is dropped, so that no error path can leak them.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    limit: usize,
    in_use: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` units, all free. The owner defines the unit: bytes or connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(BudgetState { limit, in_use: AtomicUsize::new(0) }) }
    }

    /// Reserves `n` units. Returns `None` if fewer are free.
    #[must_use]
    pub fn try_reserve(&self, n: usize) -> Option<Reservation> {
        // Relaxed is enough, because the count protects no other memory.
        self.shared
            .in_use
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(n).filter(|sum| *sum <= self.shared.limit)
            })
            .ok()
            .map(|_| Reservation { budget: self.clone(), amount: n })
    }

    /// Units reserved now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.in_use.load(Ordering::Relaxed)
    }

    /// Units that can be reserved in total.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.shared.limit
    }
}

/// Units of a [`Budget`]; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its units back at once"]
pub struct Reservation {
    budget: Budget,
    amount: usize,
}

impl Reservation {
    /// Units reserved.
    #[must_use]
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Takes over the units of `other`, which must be of the same budget.
    pub fn absorb(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget.shared, &other.budget.shared), "the reservations are of two budgets");
        self.amount += std::mem::take(&mut other.amount);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.shared.in_use.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_stop_at_the_limit_and_are_given_back_on_drop() {
        let budget = Budget::new(10);
        let six = budget.try_reserve(6).unwrap();
        assert!(budget.try_reserve(5).is_none());
        assert_eq!(budget.in_use(), 6, "a failed reservation takes nothing");
        let four = budget.clone().try_reserve(4).unwrap();
        assert_eq!((budget.in_use(), budget.limit(), four.amount()), (10, 10, 4));
        drop(six);
        assert_eq!(budget.in_use(), 4);
        drop(four);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn a_huge_reservation_does_not_overflow() {
        let budget = Budget::new(usize::MAX);
        let _one = budget.try_reserve(1).unwrap();
        assert!(budget.try_reserve(usize::MAX).is_none());
    }

    #[test]
    fn an_absorbed_reservation_is_given_back_with_the_other() {
        let budget = Budget::new(10);
        let mut first = budget.try_reserve(3).unwrap();
        first.absorb(budget.try_reserve(4).unwrap());
        assert_eq!((first.amount(), budget.in_use()), (7, 7));
        drop(first);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn the_limit_holds_when_threads_race() {
        let budget = Budget::new(64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..10_000 {
                        let held = budget.try_reserve(n % 40);
                        assert!(budget.in_use() <= budget.limit());
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(budget.in_use(), 0);
    }
}
