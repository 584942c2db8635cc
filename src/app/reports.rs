//! Tells the datapath which events somebody listens to.
use tokio::sync::{mpsc, watch};

use crate::{
    admin::monitor::{Events, Listeners, Wanted},
    enforcer::{Change, Handle},
    lifecycle::Tasks,
    policy::RuleNames,
};

/// The events of the datapath, which reports what is listened to from now on.
pub(super) fn spawn(tasks: &Tasks, handle: &Handle, rules: RuleNames) -> Events {
    let listeners = Listeners::default();
    let wanted = listeners.wanted();
    let (changes, cancel) = (handle.changes.clone(), tasks.token());
    tasks.spawn("reports", async move {
        cancel.run_until_cancelled(tell(wanted, changes)).await;
        Ok(())
    });
    Events {
        source: handle.events.clone(),
        listeners,
        rules,
    }
}

async fn tell(mut wanted: watch::Receiver<Wanted>, changes: mpsc::Sender<Change>) {
    while wanted.changed().await.is_ok() {
        let Wanted { verdicts, traces } = *wanted.borrow_and_update();
        if changes
            .send(Change::Reports { verdicts, traces })
            .await
            .is_err()
        {
            return;
        }
    }
}
