//! Mail for mailboxes that another transaction keeps locked. It waits apart, so that it does not hold up mail for others.
//!
//! A batch waits briefly for its mailboxes, in the order in which PostgreSQL grants them; batches of other nodes release
//! them soon. If one stays locked, the batch goes on without it. The requests that need it are queued here, where one worker
//! serves them in batches that wait a second, and then refuse what needs a mailbox that is still locked. While requests for
//! a recipient wait here, later sends to it queue up behind them, so that a device's messages keep their order.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{LockWait, MailAnswer, MailRequest, Mailboxes, first_commit};
use crate::{
    domain::{DeviceId, Refusal, Signal, UserId},
    store::{BatchItem, BatchOutcome, BatchWorkers, Batcher, StoreError},
    tasks::Tasks,
};

/// Maximum number of requests for one recipient that wait.
const WAITING_PER_RECIPIENT: usize = 1024;

/// The queue of deferred requests. Clones share it.
#[derive(Clone)]
pub struct DeferredMail {
    queue: Batcher<DeferredRequest, MailAnswer>,
    waiting: Arc<WaitingRecipients>,
}

/// The number of requests that wait for each recipient.
#[derive(Default)]
struct WaitingRecipients(Mutex<HashMap<UserId, usize>>);

/// A request that counts as waiting until it is dropped.
struct DeferredRequest {
    request: MailRequest,
    place: WaitingPlace,
}

/// Counts one request for a recipient as waiting. Dropping it ends that.
struct WaitingPlace {
    recipient: UserId,
    waiting: Arc<WaitingRecipients>,
}

impl BatchItem for DeferredRequest {
    fn user(&self) -> Option<UserId> {
        self.request.user()
    }
}

impl WaitingRecipients {
    fn counts(&self) -> MutexGuard<'_, HashMap<UserId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts();
        if let Some(count) = counts.get_mut(&self.recipient) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.recipient);
            }
        }
    }
}

impl DeferredMail {
    /// Starts the worker, of which there must be one. It serves deferred requests with `mailboxes`, and passes the signals
    /// to `publish`.
    pub fn start(
        tasks: &Tasks,
        workers: BatchWorkers,
        mailboxes: Mailboxes,
        publish: impl Fn(Vec<(DeviceId, Signal)>) + Clone + Send + Sync + 'static,
    ) -> Self {
        let health = mailboxes.store.health().clone();
        let queue = Batcher::start(tasks, workers, &health, move |items: Vec<DeferredRequest>| {
            let (mailboxes, publish) = (mailboxes.clone(), publish.clone());
            async move {
                let (requests, places): (Vec<_>, Vec<_>) =
                    items.into_iter().map(|item| (item.request, item.place)).unzip();
                let outcome = mailboxes.serve(requests).await;
                publish(outcome.signals);
                // Only now may a later send to these recipients be served elsewhere.
                drop(places);
                outcome.answers
            }
        });
        Self { queue, waiting: Arc::default() }
    }

    /// Whether a send must wait behind others to the same recipient.
    fn is_behind(&self, item: &MailRequest) -> bool {
        matches!(item, MailRequest::Send(send) if self.waiting.counts().contains_key(&send.to))
    }

    /// Queues a request. The answer is the one to give now.
    fn defer(&self, request: MailRequest) -> Result<MailAnswer, StoreError> {
        let recipient = request.recipient();
        {
            let mut counts = self.waiting.counts();
            let count = counts.entry(recipient).or_default();
            if *count >= WAITING_PER_RECIPIENT {
                return Err(Refusal::Unavailable.into());
            }
            *count += 1;
        }
        let place = WaitingPlace { recipient, waiting: self.waiting.clone() };
        self.queue.enqueue(DeferredRequest { request, place }).map(MailAnswer::Deferred)
    }
}

/// The recipients with a mailbox that a batch has skipped because it is locked.
#[derive(Default)]
pub struct SkippedRecipients(Mutex<HashSet<UserId>>);

impl SkippedRecipients {
    fn users(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy, so that nothing is locked while a transaction runs.
    fn known(&self) -> HashSet<UserId> {
        self.users().clone()
    }
}

impl MailRequest {
    /// The user whose mailboxes it needs.
    fn recipient(&self) -> UserId {
        match self {
            Self::Send(send) => send.to,
            Self::Ack(ack) => ack.caller.user,
        }
    }
}

impl Mailboxes {
    /// Like [`Self::serve`], but waits only briefly for locked mailboxes. Requests that need one that stays locked are
    /// passed to `deferred`, and answered [`MailAnswer::Deferred`].
    pub async fn serve_or_defer(&self, deferred: &DeferredMail, items: Vec<MailRequest>) -> BatchOutcome<MailAnswer> {
        let mut all = BatchOutcome::default();
        let mut rest = items;
        while !rest.is_empty() {
            let later = rest.split_off(first_commit(&rest));
            let (outcome, outage) = self.commit_or_defer(deferred, rest).await;
            all.append(outcome);
            if let Some(outage) = outage {
                // Each further transaction would wait just as long, and so delay the requests queued behind it.
                all.append(BatchOutcome::failed(&outage, later.len()));
                return all;
            }
            rest = later;
        }
        all
    }

    /// Runs one transaction. The error is an outage that it has found.
    async fn commit_or_defer(
        &self,
        deferred: &DeferredMail,
        items: Vec<MailRequest>,
    ) -> (BatchOutcome<MailAnswer>, Option<StoreError>) {
        let is_behind: Vec<bool> = items.iter().map(|item| deferred.is_behind(item)).collect();
        let (mut behind, mut commit) = (Vec::new(), Vec::with_capacity(items.len()));
        for (item, is_behind) in items.into_iter().zip(&is_behind) {
            if *is_behind { behind.push(item) } else { commit.push(item) }
        }
        let skipped = SkippedRecipients::default();
        let outcome = self
            .store
            .run_batch("mail", &commit, |items, again| self.commit_available(items, again, LockWait::Brief, &skipped));
        let (BatchOutcome { answers, signals }, outage) = match outcome.await {
            Ok(outcome) => (outcome, None),
            Err(error) => (BatchOutcome::failed(&error, commit.len()), Some(error).filter(StoreError::is_outage)),
        };
        let (mut served, mut behind) = (commit.into_iter().zip(answers), behind.into_iter());
        let answer = |is_behind: bool| {
            let item = if is_behind {
                behind.next()
            } else {
                match served.next() {
                    Some((item, Err(StoreError::Locked(_)))) => Some(item),
                    Some((_, answer)) => return answer,
                    None => None,
                }
            };
            item.map_or(Err(StoreError::Overloaded), |item| deferred.defer(item))
        };
        (BatchOutcome { answers: is_behind.into_iter().map(answer).collect(), signals }, outage)
    }

    /// Runs one transaction. If it waits in vain for a lock, it runs again without the mailboxes that others still keep
    /// locked. The recipients of requests that need one of these are added to `skipped`; sends to those that are in it
    /// already are not served.
    pub(super) async fn commit_available(
        &self,
        items: &[MailRequest],
        again: bool,
        wait: LockWait,
        skipped: &SkippedRecipients,
    ) -> Result<BatchOutcome<MailAnswer>, StoreError> {
        let outcome = match self.serve_once(items, again, wait, skipped.known()).await {
            Err(StoreError::Locked(_)) => self.serve_once(items, again, LockWait::Skip, skipped.known()).await,
            outcome => outcome,
        };
        let mut skipped = skipped.users();
        match &outcome {
            Ok(outcome) => {
                let locked = items.iter().zip(&outcome.answers);
                let locked = locked.filter(|(_, answer)| matches!(answer, Err(StoreError::Locked(_))));
                skipped.extend(locked.map(|(item, _)| item.recipient()));
            }
            // It was the only request, or they are run one by one next.
            Err(StoreError::Locked(_)) => {
                if let [item] = items {
                    skipped.insert(item.recipient());
                }
            }
            Err(_) => {}
        }
        drop(skipped);
        outcome
    }
}
