//! A memory budget in bytes, divided by client network and user, so that no client can use up what others need.
//!
//! A user may hold a sixteenth of the budget and a network a quarter. Most of the memory belongs to messages that are
//! being received and to send queues, which can be given up. If memory is needed and none is free, the budget gives up
//! the oldest of them that belongs to the network, and in it to the user, that holds most. So nobody waits for memory.
//! Which network holds most is judged by the /32 of IPv6 first, whose owner can spread its connections over many /48.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use uuid::Uuid;

use crate::{
    domain::{ClientNetwork, UserId, network::CountedNetwork},
    metrics::{Direction, Metrics, SocketShare},
};

/// The share of a user is the budget divided by this.
const USERS: usize = 16;
/// The share of a network is the budget divided by this.
const NETWORKS: usize = 4;
/// Added to the ages of accounts that are in use, so that the others come first.
const ACTIVE: u64 = 1 << 63;

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The client's network.
    pub network: ClientNetwork,
    /// The client's user.
    pub user: UserId,
}

impl Holder {
    /// For connections without a known client.
    pub const NOBODY: Self = Self { network: ClientNetwork::V4([0; 3]), user: UserId(Uuid::nil()) };
}

/// The memory could not be reserved: the account was given up, or all of the memory is in use by what cannot be given
/// up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

/// A node-wide budget of bytes with a share for each user and network. Clones share it.
#[derive(Clone, Debug)]
pub struct SharedBudget {
    state: Arc<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    limit: usize,
    user_limit: usize,
    network_limit: usize,
    ledger: Mutex<Ledger>,
    /// Counts the accounts that were given up.
    count: Option<(Arc<Metrics>, Direction)>,
}

/// What is in use. Entries without bytes are removed.
#[derive(Debug, Default)]
struct Ledger {
    total: usize,
    users: HashMap<UserId, UserUse>,
    networks: HashMap<ClientNetwork, NetworkUse>,
    /// The number of times that an account became the newest.
    clock: u64,
}

#[derive(Debug, Default)]
struct UserUse {
    bytes: usize,
    accounts: AccountsByAge,
}

/// The accounts of a user with bytes that can be given up, with their ages, oldest first. Most users have one, for which a
/// tree would take twelve times as much memory.
#[derive(Debug, Default)]
struct AccountsByAge(Vec<(u64, Arc<AccountState>)>);

#[derive(Debug, Default)]
struct NetworkUse {
    bytes: usize,
    users: HashMap<UserId, Use>,
}

/// The use of a user in a network.
#[derive(Debug, Default)]
struct Use {
    bytes: usize,
    /// The part of `bytes` that can be given up.
    yielding: usize,
}

/// The part of a budget that one connection uses. When it is dropped, its bytes are given back.
#[derive(Debug)]
pub struct Account {
    budget: SharedBudget,
    state: Arc<AccountState>,
}

#[derive(Debug)]
struct AccountState {
    holder: Holder,
    /// Written only while the ledger is locked.
    yielding: Mutex<Yielding>,
    is_given_up: AtomicBool,
    waker: AtomicWaker,
}

/// The bytes of an account that can be given up.
#[derive(Debug, Default)]
struct Yielding {
    bytes: usize,
    /// The key in [`UserUse::accounts`] while there are bytes.
    age: u64,
}

/// Bytes of a [`SharedBudget`] that cannot be given up; dropping this gives them back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its bytes back at once"]
pub struct SharedReservation {
    budget: SharedBudget,
    holder: Holder,
    bytes: usize,
}

impl SharedBudget {
    /// A budget of `limit` bytes, all free. A share has at least `least_share` bytes.
    #[must_use]
    pub fn new(limit: usize, least_share: usize) -> Self {
        let share = |parts: usize| (limit / parts).max(least_share).min(limit);
        Self {
            state: Arc::new(BudgetState {
                limit,
                user_limit: share(USERS),
                network_limit: share(NETWORKS),
                ledger: Mutex::default(),
                count: None,
            }),
        }
    }

    /// Like [`Self::new`]. Counts the accounts that it gives up.
    #[must_use]
    pub fn counted(limit: usize, least_share: usize, metrics: Arc<Metrics>, direction: Direction) -> Self {
        let BudgetState { limit, user_limit, network_limit, .. } = *Self::new(limit, least_share).state;
        let count = Some((metrics, direction));
        Self { state: Arc::new(BudgetState { limit, user_limit, network_limit, ledger: Mutex::default(), count }) }
    }

    /// A budget of places instead of bytes, for `Account::take_place`: a user may hold `user_limit` of them, and a network
    /// all.
    #[must_use]
    pub fn of_places(limit: usize, user_limit: usize) -> Self {
        let (network_limit, ledger) = (limit, Mutex::default());
        Self { state: Arc::new(BudgetState { limit, user_limit, network_limit, ledger, count: None }) }
    }

    /// Bytes in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.ledger().total
    }

    /// Bytes in total.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.state.limit
    }

    /// Opens an account for a connection of this holder.
    #[must_use]
    pub fn account(&self, holder: Holder) -> Account {
        let state = AccountState {
            holder,
            yielding: Mutex::default(),
            is_given_up: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        };
        Account { budget: self.clone(), state: Arc::new(state) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.state.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `holder` may use `bytes` more.
    fn has_room(&self, ledger: &Ledger, holder: Holder, bytes: usize) -> bool {
        let fits = |used: usize, limit: usize| used.checked_add(bytes).is_some_and(|sum| sum <= limit);
        fits(ledger.user_bytes(holder.user), self.state.user_limit)
            && fits(ledger.network_bytes(holder.network), self.state.network_limit)
            && fits(ledger.total, self.state.limit)
    }

    /// Gives up accounts until `holder` may use `bytes` more.
    ///
    /// # Errors
    /// If there is nothing left to give up.
    fn make_room(&self, ledger: &mut Ledger, holder: Holder, bytes: usize) -> Result<(), Exhausted> {
        let over = |used: usize, limit: usize| used.checked_add(bytes).is_none_or(|sum| sum > limit);
        loop {
            let victim = if over(ledger.user_bytes(holder.user), self.state.user_limit) {
                ledger.oldest_of_user(holder.user, None)
            } else if over(ledger.network_bytes(holder.network), self.state.network_limit) {
                ledger.oldest_of_network(holder.network)
            } else if over(ledger.total, self.state.limit) {
                ledger.largest_network().and_then(|(network, _)| ledger.oldest_of_network(network))
            } else {
                return Ok(());
            };
            self.give_up(ledger, &victim.ok_or(Exhausted)?);
        }
    }

    fn give_up(&self, ledger: &mut Ledger, account: &Arc<AccountState>) {
        account.is_given_up.store(true, Ordering::Release);
        let bytes = account.yielding().bytes;
        ledger.release_yielding(account, bytes);
        account.waker.wake();
        if let Some((metrics, direction)) = &self.state.count {
            metrics.memory_given_up.inc(*direction);
        }
    }
}

impl Ledger {
    fn user_bytes(&self, user: UserId) -> usize {
        self.users.get(&user).map_or(0, |user| user.bytes)
    }

    fn network_bytes(&self, network: ClientNetwork) -> usize {
        self.networks.get(&network).map_or(0, |network| network.bytes)
    }

    /// The network that holds most, of those that have something to give up: the largest in the /32 of IPv6, or the /24 of
    /// IPv4, that holds most. Also returns what that holds.
    fn largest_network(&self) -> Option<(ClientNetwork, usize)> {
        let mut wide: HashMap<CountedNetwork, usize> = HashMap::new();
        for (network, held) in &self.networks {
            *wide.entry(network.widest()).or_default() += held.bytes;
        }
        let yields = |network: &NetworkUse| network.users.values().any(|user| user.yielding > 0);
        let networks = self.networks.iter().filter(|(_, network)| yields(network));
        let sizes = networks.map(|(network, held)| {
            let of_wide = wide.get(&network.widest()).copied().unwrap_or_default();
            (of_wide, held.bytes, *network)
        });
        sizes.max_by_key(|(of_wide, bytes, _)| (*of_wide, *bytes)).map(|(of_wide, _, network)| (network, of_wide))
    }

    /// What the /32 of IPv6, or the /24 of IPv4, around a network holds.
    fn wide_bytes(&self, network: ClientNetwork) -> usize {
        let (networks, widest) = (self.networks.iter(), network.widest());
        networks.filter(|(network, _)| network.widest() == widest).map(|(_, held)| held.bytes).sum()
    }

    /// The oldest account in a network, of the users that hold most in it.
    fn oldest_of_network(&self, network: ClientNetwork) -> Option<Arc<AccountState>> {
        let users = &self.networks.get(&network)?.users;
        let yielding = || users.iter().filter(|(_, user)| user.yielding > 0);
        let most = yielding().map(|(_, user)| user.bytes).max()?;
        let largest = yielding().filter(|(_, user)| user.bytes == most);
        let oldest = largest.filter_map(|(user, _)| self.oldest_of_user(*user, Some(network)));
        oldest.min_by_key(|account| account.yielding().age)
    }

    /// The oldest account of a user, in any network or in one.
    fn oldest_of_user(&self, user: UserId, network: Option<ClientNetwork>) -> Option<Arc<AccountState>> {
        let mut accounts = self.users.get(&user)?.accounts.oldest_first();
        accounts.find(|account| network.is_none_or(|network| account.holder.network == network)).cloned()
    }

    fn reserve(&mut self, holder: Holder, bytes: usize) {
        self.total += bytes;
        self.users.entry(holder.user).or_default().bytes += bytes;
        let network = self.networks.entry(holder.network).or_default();
        network.bytes += bytes;
        network.users.entry(holder.user).or_default().bytes += bytes;
    }

    fn release(&mut self, holder: Holder, bytes: usize) {
        self.total -= bytes;
        update(&mut self.users, &holder.user, |user| {
            user.bytes -= bytes;
            user.bytes == 0
        });
        update(&mut self.networks, &holder.network, |network| {
            network.bytes -= bytes;
            update(&mut network.users, &holder.user, |user| {
                user.bytes -= bytes;
                user.bytes == 0
            });
            network.bytes == 0
        });
    }

    fn reserve_yielding(&mut self, account: &Arc<AccountState>, bytes: usize) {
        self.reserve(account.holder, bytes);
        let mut yielding = account.yielding();
        if yielding.bytes == 0 {
            self.clock += 1;
            yielding.age = ACTIVE + self.clock;
        }
        yielding.bytes += bytes;
        self.users.entry(account.holder.user).or_default().accounts.insert(yielding.age, account);
        self.add_yielding(account.holder, bytes, 0);
    }

    fn release_yielding(&mut self, account: &Arc<AccountState>, bytes: usize) {
        let mut yielding = account.yielding();
        yielding.bytes -= bytes;
        if yielding.bytes == 0
            && let Some(user) = self.users.get_mut(&account.holder.user)
        {
            user.accounts.remove(yielding.age);
        }
        drop(yielding);
        self.add_yielding(account.holder, 0, bytes);
        self.release(account.holder, bytes);
    }

    fn change_age(&mut self, user: UserId, from: u64, to: u64) {
        if let Some(user) = self.users.get_mut(&user)
            && let Some(account) = user.accounts.remove(from)
        {
            user.accounts.insert(to, &account);
        }
    }

    fn add_yielding(&mut self, holder: Holder, added: usize, removed: usize) {
        if let Some(user) =
            self.networks.get_mut(&holder.network).and_then(|network| network.users.get_mut(&holder.user))
        {
            user.yielding = user.yielding + added - removed;
        }
    }
}

impl AccountsByAge {
    fn place(&self, age: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&age, |(age, _)| *age)
    }

    /// Adds an account, unless there is one of this age.
    fn insert(&mut self, age: u64, account: &Arc<AccountState>) {
        if let Err(place) = self.place(age) {
            if self.0.is_empty() {
                self.0.reserve_exact(1);
            }
            self.0.insert(place, (age, account.clone()));
        }
    }

    fn remove(&mut self, age: u64) -> Option<Arc<AccountState>> {
        self.place(age).ok().map(|place| self.0.remove(place).1)
    }

    fn oldest_first(&self) -> impl Iterator<Item = &Arc<AccountState>> {
        self.0.iter().map(|(_, account)| account)
    }
}

/// Changes an entry, and removes it if `change` returns true.
fn update<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: &K, change: impl FnOnce(&mut V) -> bool) {
    if let Some(value) = map.get_mut(key)
        && change(value)
    {
        map.remove(key);
    }
}

impl AccountState {
    fn yielding(&self) -> MutexGuard<'_, Yielding> {
        self.yielding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Reserves `bytes` more that can be given up. If the budget or a share is exhausted, older ones are given up.
    ///
    /// # Errors
    /// If this account was given up, now or before, or nothing is left to give up.
    pub fn grow(&self, bytes: usize) -> Result<(), Exhausted> {
        let mut ledger = self.budget.ledger();
        self.budget.make_room(&mut ledger, self.state.holder, bytes)?;
        // Only now, because this account may have been the oldest.
        if self.is_given_up() {
            return Err(Exhausted);
        }
        if bytes > 0 {
            ledger.reserve_yielding(&self.state, bytes);
        }
        Ok(())
    }

    /// Gives `bytes` back that were reserved with [`Self::grow`].
    pub fn shrink(&self, bytes: usize) {
        let mut ledger = self.budget.ledger();
        // All bytes of an account that was given up are back already.
        if bytes > 0 && !self.is_given_up() {
            ledger.release_yielding(&self.state, bytes);
        }
    }

    /// Makes this account the newest: it was of use to its client just now, so others are given up first.
    pub fn renew(&self) {
        let mut ledger = self.budget.ledger();
        let mut yielding = self.state.yielding();
        if yielding.bytes == 0 {
            return;
        }
        ledger.clock += 1;
        let age = std::mem::replace(&mut yielding.age, ACTIVE + ledger.clock);
        ledger.change_age(self.state.holder.user, age, yielding.age);
    }

    /// Makes this account older than all that are in use: it is given up before these. Of several, the oldest comes first.
    pub fn retire(&self) {
        let mut ledger = self.budget.ledger();
        let mut yielding = self.state.yielding();
        if yielding.bytes > 0 {
            let (age, retired) = (yielding.age, yielding.age & !ACTIVE);
            yielding.age = retired;
            ledger.change_age(self.state.holder.user, age, retired);
        }
    }

    /// Takes one place of a budget of places. If its user has its share, the oldest of the user is given up. If there is no
    /// place left, the oldest of the network that holds most is, provided that it holds at least two more than this
    /// network. Returns which of them was given up.
    ///
    /// # Errors
    /// If there is no place, and no network holds so many more.
    pub fn take_place(&self) -> Result<Option<SocketShare>, Exhausted> {
        let (holder, budget) = (self.state.holder, &self.budget);
        let mut ledger = budget.ledger();
        let mut given_up = None;
        if ledger.user_bytes(holder.user) >= budget.state.user_limit {
            let oldest = ledger.oldest_of_user(holder.user, None).ok_or(Exhausted)?;
            budget.give_up(&mut ledger, &oldest);
            given_up = Some(SocketShare::User);
        }
        if ledger.total >= budget.state.limit {
            let (largest, held) = ledger.largest_network().ok_or(Exhausted)?;
            if held < ledger.wide_bytes(holder.network) + 2 {
                return Err(Exhausted);
            }
            let oldest = ledger.oldest_of_network(largest).ok_or(Exhausted)?;
            budget.give_up(&mut ledger, &oldest);
            given_up = Some(SocketShare::Network);
        }
        ledger.reserve_yielding(&self.state, 1);
        Ok(given_up)
    }

    /// Reserves bytes that cannot be given up. If the budget or a share is exhausted, accounts are given up.
    ///
    /// # Errors
    /// If nothing is left to give up.
    pub fn reserve(&self, bytes: usize) -> Result<SharedReservation, Exhausted> {
        let mut ledger = self.budget.ledger();
        self.budget.make_room(&mut ledger, self.state.holder, bytes)?;
        Ok(self.reserved(&mut ledger, bytes))
    }

    /// Like [`Self::reserve`], but gives nothing up.
    ///
    /// # Errors
    /// If the budget or a share is exhausted.
    pub fn try_reserve(&self, bytes: usize) -> Result<SharedReservation, Exhausted> {
        let mut ledger = self.budget.ledger();
        if !self.budget.has_room(&ledger, self.state.holder, bytes) {
            return Err(Exhausted);
        }
        Ok(self.reserved(&mut ledger, bytes))
    }

    fn reserved(&self, ledger: &mut Ledger, bytes: usize) -> SharedReservation {
        if bytes > 0 {
            ledger.reserve(self.state.holder, bytes);
        }
        SharedReservation { budget: self.budget.clone(), holder: self.state.holder, bytes }
    }

    /// The budget that this account is part of.
    #[must_use]
    pub fn budget(&self) -> &SharedBudget {
        &self.budget
    }

    /// Whether the bytes of this account were given up. It gets no more.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.state.is_given_up.load(Ordering::Acquire)
    }

    /// Ready once the bytes of this account were given up. Only one task at a time may wait.
    pub fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_given_up() {
            return Poll::Ready(());
        }
        self.state.waker.register(cx.waker());
        if self.is_given_up() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut ledger = self.budget.ledger();
        let bytes = self.state.yielding().bytes;
        if bytes > 0 {
            ledger.release_yielding(&self.state, bytes);
        }
    }
}

impl Drop for SharedReservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.ledger().release(self.holder, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(network: u8, user: u128) -> Holder {
        Holder { network: ClientNetwork::V4([192, 0, network]), user: UserId(Uuid::from_u128(user)) }
    }

    /// A budget of 160: 10 a user, 40 a network.
    fn budget() -> SharedBudget {
        SharedBudget::new(160, 1)
    }

    #[test]
    fn bytes_are_given_back_by_shrinking_and_dropping() {
        let budget = budget();
        let (account, other) = (budget.account(holder(1, 1)), budget.account(holder(1, 2)));
        account.grow(6).unwrap();
        other.grow(3).unwrap();
        let reservation = account.reserve(2).unwrap();
        assert_eq!(budget.in_use(), 11);
        account.shrink(4);
        assert_eq!(budget.in_use(), 7);
        drop(account);
        assert_eq!(budget.in_use(), 5);
        drop((reservation, other));
        assert_eq!(budget.in_use(), 0);
        let ledger = budget.ledger();
        assert!(ledger.users.is_empty() && ledger.networks.is_empty(), "{ledger:?}");
    }

    #[test]
    fn a_user_displaces_its_own_oldest() {
        let budget = budget();
        let accounts = [1, 2, 3].map(|network| budget.account(holder(network, 1)));
        let other = budget.account(holder(1, 2));
        other.grow(10).unwrap();
        for account in &accounts {
            account.grow(4).unwrap();
        }
        assert_eq!(accounts.each_ref().map(Account::is_given_up), [true, false, false]);
        accounts[1].renew();
        accounts[1].grow(3).unwrap();
        assert_eq!(accounts.each_ref().map(Account::is_given_up), [true, false, true]);
        assert_eq!((budget.in_use(), other.is_given_up()), (17, false));
        assert_eq!(accounts[0].grow(1), Err(Exhausted), "an account that was given up gets no more");
        accounts[0].shrink(4);
        assert_eq!(budget.in_use(), 17, "its bytes were given back already");
    }

    #[test]
    fn a_network_displaces_the_oldest_of_its_largest_user() {
        let budget = budget();
        let small = budget.account(holder(1, 1));
        small.grow(5).unwrap();
        let large: Vec<_> = (2..5).map(|user| budget.account(holder(1, user))).collect();
        for account in &large {
            account.grow(10).unwrap();
        }
        large[0].shrink(1);
        let newcomer = budget.account(holder(1, 5));
        newcomer.grow(7).unwrap();
        assert!(!small.is_given_up() && !large[0].is_given_up());
        assert_eq!(large.iter().filter(|account| account.is_given_up()).count(), 1);
    }

    #[test]
    fn an_exhausted_budget_displaces_the_network_that_holds_most() {
        let budget = budget();
        let first = budget.account(holder(9, 90));
        first.grow(10).unwrap();
        let crowd: Vec<_> = (0..15).map(|n| budget.account(holder(1 + n / 4, n.into()))).collect();
        for account in &crowd {
            account.grow(10).unwrap();
        }
        assert_eq!(budget.in_use(), 160);
        let newcomer = budget.account(holder(10, 100));
        for n in 1..=10 {
            newcomer.grow(1).unwrap();
            assert_eq!(crowd.iter().filter(|account| account.is_given_up()).count(), 1, "one is enough for {n} bytes");
        }
        assert!(!first.is_given_up(), "the oldest, but its network holds little");
    }

    #[test]
    fn an_exhausted_budget_displaces_a_wide_network_that_holds_little_in_each_of_many_small_ones() {
        let budget = budget();
        let spread: Vec<_> = (0..20)
            .map(|n| {
                let network = ClientNetwork::V6([0x20, 1, 0xd, 0xb8, n, n]);
                budget.account(Holder { network, user: UserId(Uuid::from_u128(n.into())) })
            })
            .collect();
        for account in &spread {
            account.grow(8).unwrap();
        }
        assert_eq!(budget.in_use(), 160);
        let bystander = budget.account(holder(1, 100));
        bystander.grow(10).unwrap();
        for user in 101..110 {
            let other = budget.account(holder(2, user));
            other.grow(4).unwrap();
            assert!(!other.is_given_up() && !bystander.is_given_up(), "it holds more than each of the small networks");
        }
        assert!(spread.iter().any(Account::is_given_up));
    }

    #[test]
    fn reservations_are_never_given_up_and_count_towards_the_shares() {
        let budget = budget();
        let account = budget.account(holder(1, 1));
        let held = account.reserve(8).unwrap();
        account.grow(2).unwrap();
        assert!(account.try_reserve(1).is_err() && !account.is_given_up());
        drop(account.reserve(1).unwrap());
        assert!(account.is_given_up(), "the rest of the share was a queue");
        assert!(account.reserve(3).is_err(), "nothing is left to give up");
        drop(held);
        drop(account.reserve(10).unwrap());
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn a_share_has_at_least_the_given_size_and_at_most_the_budget() {
        let budget = SharedBudget::new(160, 50);
        let account = budget.account(holder(1, 1));
        account.grow(50).unwrap();
        assert_eq!(account.grow(1), Err(Exhausted), "it displaces itself");
        assert_eq!(SharedBudget::new(10, 50).state.user_limit, 10);
    }

    #[tokio::test]
    async fn an_account_that_is_given_up_wakes_its_task() {
        let budget = budget();
        let account = Arc::new(budget.account(holder(1, 1)));
        account.grow(10).unwrap();
        let waiting = account.clone();
        let waiting = tokio::spawn(std::future::poll_fn(move |cx| waiting.poll_given_up(cx)));
        tokio::task::yield_now().await;
        budget.account(holder(2, 1)).grow(1).unwrap();
        waiting.await.unwrap();
    }

    #[test]
    fn the_limits_hold_when_threads_race() {
        let budget = budget();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let budget = &budget;
                scope.spawn(move || {
                    for n in 0..5000u32 {
                        let account = budget.account(holder(thread, (n % 7).into()));
                        let held = account.reserve((n % 5) as usize);
                        let grown = account.grow((n % 11) as usize);
                        assert!(budget.in_use() <= budget.limit());
                        if grown.is_ok() {
                            account.shrink((n % 11) as usize / 2);
                        }
                        drop((held, account));
                    }
                });
            }
        });
        assert_eq!(budget.in_use(), 0);
        let ledger = budget.ledger();
        assert!(ledger.users.is_empty() && ledger.networks.is_empty(), "{ledger:?}");
    }
}
