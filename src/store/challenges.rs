//! Codes: challenges, the limits on them, and attempts to guess them.
//!
//! An address has two budgets of codes, so that strangers cannot use up the owner's: one for requests that are trusted,
//! because they come from a network from which the address signed in or show a valid token, and one for all others.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, locks, rows, sql::challenges as sql, tx::Tx};
use crate::domain::{
    ChallengeId, Email, Refusal, Timestamp, UserId,
    clock_guard::TOLERATED_AHEAD,
    otp::{self, CodePurpose},
    token::TokenHash,
    work::ProvenWork,
};

const DAY: Duration = Duration::from_hours(24);
/// How long an address trusts a network from which it signed in.
pub(super) const NETWORK_IS_KNOWN: Duration = Duration::from_hours(90 * 24);
/// How long a wrong guess at a code counts.
pub(super) const GUESSES_COUNT_FOR: Duration = Duration::from_hours(30 * 24);
/// Maximum number of wrong guesses that the history of an address has.
const MAX_GUESSES: i64 = 100;
/// Maximum number of users that are mailed about guesses at one address: a tag makes a new user of the same person.
const MAX_NOTIFIED: i64 = 10;
/// Maximum number of networks that a user trusts: those of the newest sign-ins.
const MAX_KNOWN_NETWORKS: i64 = 100;

/// Keyed hash of a network.
pub type NetworkTag = [u8; 32];

/// A challenge to insert.
pub struct NewChallenge {
    /// The id of the new challenge.
    pub id: ChallengeId,
    /// The address that its code is mailed to.
    pub email: Email,
    /// What the code is for.
    pub purpose: CodePurpose,
    /// Keyed hash of the code.
    pub hash: [u8; 32],
    /// The network that the request came from, as a keyed hash.
    pub network: NetworkTag,
    /// The network that the request came from, as the keyed hash under which this address may know it.
    pub known_network: NetworkTag,
    /// The token that the request shows, if it shows one.
    pub token: Option<TokenHash>,
    /// The current time.
    pub created_at: Timestamp,
}

/// Why a request for a code belongs to the owner's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It does not.
    None,
    /// The address signed in from its network in the last 90 days.
    KnownNetwork,
    /// It shows a valid token of the user with this address.
    Token,
}

/// A challenge of the same address within the last day.
#[derive(Clone, Debug)]
pub struct PastChallenge {
    /// When it was created.
    pub created_at: Timestamp,
    /// The network that the request came from, as a keyed hash.
    pub network: Vec<u8>,
    /// Whether a proof of work let it exceed a limit.
    pub is_paid: bool,
}

/// What the limits on codes depend on.
#[derive(Clone, Debug)]
pub struct CodeHistory {
    /// Whether the request belongs to the owner's budget.
    pub trust: Trust,
    /// The challenges of the budget in the last day, newest first. The tag of an address is ignored.
    pub past: Vec<PastChallenge>,
    /// The times of the wrong guesses at codes of the address in 30 days since its owner signed in, newest first, at most
    /// 100. The tag of an address is ignored.
    pub wrong_guesses: Vec<Timestamp>,
}

/// The origin of a guess at a code: its networks, and the proof that pays for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuessFrom<'a> {
    /// Keyed hashes of the networks, one for each width by which limits count. Empty if the limits are off.
    pub networks: &'a [NetworkTag],
    /// The proof of work that pays for the guess.
    pub work: Option<&'a ProvenWork>,
}

/// A guess that was counted as a wrong one before it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedGuess {
    /// The hash to compare the code with.
    pub hash: [u8; 32],
    /// Identifies the guess, so that it can be given back.
    pub id: Uuid,
    /// Wrong guesses at codes of the address in the last day, this one included.
    pub wrong_today: usize,
}

/// Whether a code is sent.
pub enum CodeDecision {
    /// It is sent.
    Send {
        /// The proof that is spent for it.
        spend: Option<ProvenWork>,
        /// Whether the proof lets the request exceed a limit.
        is_paid: bool,
    },
    /// It is not sent.
    Refuse(Refusal),
}

impl Store {
    /// Inserts a challenge if `decide` allows it, and returns whether a proof was spent for it. `decide` gets the history
    /// of the address, and whether a proof of the request may be spent; it may be called again.
    ///
    /// # Errors
    /// The refusal that `decide` returns
    pub async fn create_challenge(
        &self,
        new: &NewChallenge,
        decide: impl Fn(&CodeHistory, bool) -> CodeDecision,
    ) -> Result<bool, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let counted_as = new.email.without_tag();
            locks::address(&mut tx, &counted_as).await?;
            let history = history(&mut tx, new, &counted_as).await?;
            let mut decision = decide(&history, true);
            if let CodeDecision::Send { spend: Some(work), .. } = &decision
                && !spend(&mut tx, work).await?
            {
                decision = decide(&history, false);
            }
            let (is_paid, is_proven) = match decision {
                CodeDecision::Send { is_paid, spend } => (is_paid, spend.is_some()),
                CodeDecision::Refuse(refusal) => return Err(refusal.into()),
            };
            tx.query(sql::INSERT_CHALLENGE)
                .bind(new.id.0)
                .bind(new.email.as_str())
                .bind(rows::hash_to_hex(&new.hash))
                .bind((new.created_at + otp::LIFETIME).to_utc())
                .bind(new.created_at.to_utc())
                .bind(&new.network[..])
                .bind(new.purpose.name())
                .bind(&*counted_as)
                .bind(history.trust != Trust::None)
                .bind(is_paid)
                .execute()
                .await?;
            tx.commit().await?;
            Ok(is_proven)
        })
        .await
    }

    /// Deletes a challenge whose code was not mailed, so that it does not count for its address. Keeps one with a guess, so
    /// that mail that fails allows no more guesses, and because the mail server may deliver a mail that it seemed to refuse.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn withdraw_challenge(&self, challenge: ChallengeId) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(sql::WITHDRAW_CHALLENGE).bind(challenge.0).execute().await?;
            tx.commit().await
        })
        .await
    }

    /// Returns how many codes to this address were paid for by proofs of work in the last day.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn paid_codes(&self, email: &Email, now: Timestamp) -> Result<usize, StoreError> {
        let mut tx = self.read().await?;
        let paid = tx.query(sql::PAID_CODES).bind(&*email.without_tag()).bind(now.before(DAY).to_utc());
        let (paid,): (i64,) = paid.bind(latest(now)).fetch_one().await?;
        Ok(usize::try_from(paid).unwrap_or_default())
    }

    /// Counts an attempt as a wrong guess, in its own transaction so that a later failure cannot undo it. Returns the hash
    /// to compare the code with; `None` if the proof of work was spent before, and nothing was counted. A right guess must
    /// be [given back](Self::give_back_guess).
    ///
    /// # Errors
    /// `invalid_code` or `too_many_attempts`; the attempt is not counted then, but the proof is spent. A challenge with
    /// another address or purpose is `invalid_code`.
    pub async fn count_attempt(
        &self,
        challenge: ChallengeId,
        email: &Email,
        purpose: CodePurpose,
        from: GuessFrom<'_>,
        now: Timestamp,
    ) -> Result<Option<CountedGuess>, StoreError> {
        let counted = self.retrying(|| async {
            let mut tx = self.begin().await?;
            if let Some(work) = from.work
                && !spend(&mut tx, work).await?
            {
                return Ok(Ok(None));
            }
            // A refusal is a value, because the proof stays spent.
            let counted = match count(&mut tx, challenge, email, purpose, now).await? {
                Ok(hash) => Ok(Some(self.count_guess(&mut tx, hash, email, from, now).await?)),
                Err(refusal) => Err(refusal),
            };
            if counted.is_ok() || from.work.is_some() {
                tx.commit().await?;
            }
            Ok(counted)
        });
        Ok(counted.await??)
    }

    /// Records a guess as a wrong one.
    async fn count_guess(
        &self,
        tx: &mut Tx<'_>,
        hash: [u8; 32],
        email: &Email,
        from: GuessFrom<'_>,
        now: Timestamp,
    ) -> Result<CountedGuess, StoreError> {
        let (id, counted_as) = (self.settings.entropy.uuid(), email.without_tag());
        tx.query(sql::INSERT_GUESS).bind(id).bind(&*counted_as).bind(now.to_utc()).execute().await?;
        // A network that pays for its guesses does not use up those that its neighbours have for free.
        let networks = if from.work.is_none() { from.networks } else { &[] };
        for network in networks {
            tx.query(sql::INSERT_NETWORK_GUESS).bind(id).bind(&network[..]).bind(now.to_utc()).execute().await?;
        }
        let wrong_today = wrong_guesses(tx, &counted_as, DAY, now).await?.len();
        Ok(CountedGuess { hash, id, wrong_today })
    }

    /// Takes back a guess that was counted as a wrong one, because it was right.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn give_back_guess(&self, id: Uuid) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(sql::DELETE_NETWORK_GUESS).bind(id).execute().await?;
            tx.query(sql::DELETE_GUESS).bind(id).execute().await?;
            tx.commit().await
        })
        .await
    }

    /// Returns how long networks must wait for their next guess, each with the number of wrong guesses that it may make in
    /// a day; `None` if they need not wait. Parallel guesses do not see each other, so a network may exceed its limit by
    /// as many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn guess_wait(
        &self,
        networks: &[(NetworkTag, u64)],
        now: Timestamp,
    ) -> Result<Option<Duration>, StoreError> {
        let mut tx = self.read().await?;
        let mut wait = None;
        for (network, limit) in networks {
            let newer = limit.saturating_sub(1).min(i64::MAX.unsigned_abs()).cast_signed();
            let since = now.before(DAY).to_utc();
            let query = tx.query(sql::NETWORK_GUESS).bind(&network[..]).bind(since).bind(newer).bind(latest(now));
            let oldest_that_counts: Option<(DateTime<Utc>,)> = query.fetch_optional().await?;
            wait = wait.max(oldest_that_counts.map(|(at,)| (rows::time(at) + DAY).since(now)));
        }
        Ok(wait)
    }

    /// Notes that the owner of an address is mailed about wrong guesses, and returns the addresses to mail: those of the users
    /// whose address differs from this one by the tag at most, up to ten. Empty if there are none, or a mail was sent in the
    /// last day since the owner signed in.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn note_guess_notice(&self, email: &Email, now: Timestamp) -> Result<Vec<Email>, StoreError> {
        let counted_as = email.without_tag();
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let owners = tx.query(sql::OWNERS_OF).bind(&*counted_as).bind(email.as_str()).bind(MAX_NOTIFIED);
            let owners: Vec<(String,)> = owners.fetch_all().await?;
            if owners.is_empty() {
                return Ok(vec![]);
            }
            let noted = tx
                .query(sql::NOTE_NOTICE)
                .bind(&*counted_as)
                .bind(now.to_utc())
                .bind(now.before(DAY).to_utc())
                .bind(latest(now))
                .execute()
                .await?;
            tx.commit().await?;
            if noted == 0 { Ok(vec![]) } else { owners.iter().map(|(email,)| rows::email(email)).collect() }
        })
        .await
    }
}

/// Reads what the limits on codes depend on.
async fn history(tx: &mut Tx<'_>, new: &NewChallenge, counted_as: &str) -> Result<CodeHistory, StoreError> {
    let trust = trust(tx, new).await?;
    let since = new.created_at.before(DAY).to_utc();
    let past: Vec<(DateTime<Utc>, Vec<u8>, bool)> =
        tx.query(sql::CHALLENGES_OF).bind(counted_as).bind(since).bind(trust != Trust::None).fetch_all().await?;
    let past = past.into_iter().map(|(created_at, network, is_paid)| PastChallenge {
        created_at: rows::time(created_at),
        network,
        is_paid,
    });
    let wrong_guesses = wrong_guesses(tx, counted_as, GUESSES_COUNT_FOR, new.created_at).await?;
    Ok(CodeHistory { trust, past: past.collect(), wrong_guesses })
}

/// The newest wrong guesses of the last `span`, at most [`MAX_GUESSES`].
async fn wrong_guesses(
    tx: &mut Tx<'_>,
    counted_as: &str,
    span: Duration,
    now: Timestamp,
) -> Result<Vec<Timestamp>, StoreError> {
    let guesses = tx.query(sql::WRONG_GUESSES).bind(counted_as).bind(now.before(span).to_utc()).bind(MAX_GUESSES);
    let found: Vec<(DateTime<Utc>,)> = guesses.bind(latest(now)).fetch_all().await?;
    Ok(found.into_iter().map(|(at,)| rows::time(at)).collect())
}

/// The latest time of a row that counts. A later one was written under a wrong clock.
fn latest(now: Timestamp) -> DateTime<Utc> {
    (now + TOLERATED_AHEAD).to_utc()
}

/// Forgets the wrong guesses at codes of an address, because its owner signs in.
pub(super) async fn reset_guesses(tx: &mut Tx<'_>, email: &Email) -> Result<(), StoreError> {
    let counted_as = email.without_tag();
    for text in [sql::RESET_GUESSES, sql::RESET_NOTICE] {
        tx.query(text).bind(&*counted_as).execute().await?;
    }
    Ok(())
}

/// Whether a request belongs to the owner's budget. Makes the same queries for every address.
async fn trust(tx: &mut Tx<'_>, new: &NewChallenge) -> Result<Trust, StoreError> {
    let (email, now) = (new.email.as_str(), new.created_at);
    if let Some(token) = &new.token {
        let shown = tx.query(sql::TOKEN_OF_ADDRESS).bind(rows::hash_to_hex(token)).bind(now.to_utc()).bind(email);
        let shown: Option<(i32,)> = shown.fetch_optional().await?;
        if shown.is_some() {
            return Ok(Trust::Token);
        }
    }
    let known = tx.query(sql::IS_KNOWN_NETWORK).bind(email).bind(&new.known_network[..]);
    let known = known.bind(now.before(NETWORK_IS_KNOWN).to_utc()).bind(latest(now));
    let known: Option<(i32,)> = known.fetch_optional().await?;
    Ok(if known.is_some() { Trust::KnownNetwork } else { Trust::None })
}

/// Records that a proof is spent. Returns false if it was spent before.
async fn spend(tx: &mut Tx<'_>, work: &ProvenWork) -> Result<bool, StoreError> {
    let spent = tx.query(sql::SPEND_PROOF).bind(work.salt.as_bytes()).bind(work.expires_at.to_utc()).execute().await?;
    Ok(spent > 0)
}

async fn count(
    tx: &mut Tx<'_>,
    challenge: ChallengeId,
    email: &Email,
    purpose: CodePurpose,
    now: Timestamp,
) -> Result<Result<[u8; 32], Refusal>, StoreError> {
    let row: Option<(bool, DateTime<Utc>, i32)> = tx
        .query(sql::CHALLENGE_FOR_UPDATE)
        .bind(challenge.0)
        .bind(email.as_str())
        .bind(purpose.name())
        .fetch_optional()
        .await?;
    let attempts = match row {
        Some((false, expires_at, attempts)) if rows::time(expires_at) > now => attempts,
        _ => return Ok(Err(Refusal::InvalidCode)),
    };
    if attempts >= otp::MAX_ATTEMPTS {
        return Ok(Err(Refusal::TooManyAttempts));
    }
    let counted: Option<(String,)> = tx
        .query(sql::COUNT_ATTEMPT)
        .bind(challenge.0)
        .bind(now.to_utc())
        .bind(otp::MAX_ATTEMPTS)
        .fetch_optional()
        .await?;
    let Some((hash,)) = counted else { return Ok(Err(Refusal::TooManyAttempts)) };
    Ok(Ok(rows::hash_from_hex(&hash)?))
}

/// Remembers that a user has signed in from a network.
pub(super) async fn know_network(
    tx: &mut Tx<'_>,
    user: UserId,
    network: &NetworkTag,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.query(sql::KNOW_NETWORK).bind(user.0).bind(&network[..]).bind(now.to_utc()).execute().await?;
    tx.query(sql::FORGET_OLDER_NETWORKS).bind(user.0).bind(MAX_KNOWN_NETWORKS).execute().await?;
    Ok(())
}

/// Uses up a challenge whose code was compared. It locks the challenge, and so comes before the locks of
/// [`locks`].
///
/// # Errors
/// `invalid_code` if it was used in the meantime
pub(super) async fn use_challenge(tx: &mut Tx<'_>, challenge: ChallengeId) -> Result<(), StoreError> {
    match tx.query(sql::USE_CHALLENGE).bind(challenge.0).execute().await? {
        0 => Err(Refusal::InvalidCode.into()),
        _ => Ok(()),
    }
}

/// Makes a challenge that the transaction has used usable again, and gives the attempt back.
pub(super) async fn refund(tx: &mut Tx<'_>, challenge: ChallengeId) -> Result<(), StoreError> {
    tx.query(sql::REFUND_ATTEMPT).bind(challenge.0).execute().await?;
    Ok(())
}
