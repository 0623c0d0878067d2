//! Alice locks her account, and links a new device with an approval.

use sealwire_client::{Approval, ApprovalState, Code, Event, SignIn};

use crate::{Outcome, Tour, chapter, device::Device, ensure, keys::Keyring, say};

/// Asks to sign in on a new device of a locked account.
async fn ask(tour: &Tour, email: &str, name: &str) -> Outcome<Approval> {
    let (challenge, code) = tour.code(email).await?;
    match tour.server.sign_in(&challenge, &code).device_name(name).await? {
        SignIn::Approval(approval) => Ok(approval),
        SignIn::Session(_) => Err("a right code alone signed in a new device".into()),
    }
}

/// Waits until the device is asked to approve a request.
async fn asked(device: &mut Device, approval: &Approval) -> Outcome {
    device
        .event(|event| match event {
            Event::ApprovalRequested(pending) => (pending.request_id == approval.request_id).then_some(()),
            _ => None,
        })
        .await
}

pub async fn link_with_approval(tour: &Tour, alice: &mut Device) -> Outcome {
    chapter(11, "Alice locks her account, and links a tablet with an approval");
    say("She writes down a recovery key, in case that she loses all devices. The server gets only its hash.");
    let recovery_key = alice.client.new_recovery_key();
    alice.client.lock_account(&recovery_key, None, None).await?;

    say("Her new tablet enters the right code, and shows a number.");
    let email = alice.email.clone();
    let tablet = ask(tour, &email, "Alice's tablet").await?;
    asked(alice, &tablet).await?;
    let state = tour.server.approval(&tablet).await?;
    ensure(matches!(state, ApprovalState::Pending { .. }), "the tablet waits")?;
    say("The phone asks whether that is her, and for the number. She types it in.");
    alice.client.approve(tablet.request_id, &tablet.number).await?;
    let session = tour.server.wait_for_approval(&tablet).await?;
    let tablet = Device::start(&tour.server, "Alice's tablet", &email, session, Keyring::new(&tour.entropy)).await?;
    tablet.client.connected().await?;
    tablet.leave().await;

    say("Somebody who reads her mail enters a right code too. She denies that request.");
    let thief = ask(tour, &email, "Alice's other phone").await?;
    asked(alice, &thief).await?;
    alice.client.deny(thief.request_id).await?;
    let refused = tour.server.wait_for_approval(&thief).await;
    ensure(refused.is_err_and(|error| error.code() == Some(Code::Denied)), "the thief gets nothing")
}
