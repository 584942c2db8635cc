//! What a sequence must contain to count as a test of everything: read off the calls and answers
//! themselves, not off what the generator meant to do.
use std::collections::BTreeMap;

use etcd_client::proto::{PbPutRequest, PbRangeRequest, PbTxnOpRequest, PbTxnRequest};

use super::{
    server::Outcome,
    wire::{Call, Reply, WatchCall, WatchCreate},
};

/// How often each of [`FEATURES`] must occur.
const AT_LEAST: usize = 20;

/// Every operation, every option, and the answers that are not errors but easy to get wrong.
const FEATURES: &[&str] = &[
    "range",
    "range interval",
    "range from key",
    "range limit",
    "range revision",
    "range ascending",
    "range descending",
    "range order left open",
    "range by version",
    "range by create revision",
    "range by mod revision",
    "range by value",
    "range serializable",
    "range keys only",
    "range count only",
    "range min mod revision",
    "range max mod revision",
    "range min create revision",
    "range max create revision",
    "answer more",
    "put",
    "put lease",
    "put prev_kv",
    "put ignore value",
    "put ignore lease",
    "delete",
    "delete prev_kv",
    "delete interval",
    "delete from key",
    "txn",
    "txn compare version",
    "txn compare create revision",
    "txn compare mod revision",
    "txn compare value",
    "txn compare lease",
    "txn compare equal",
    "txn compare greater",
    "txn compare less",
    "txn compare not equal",
    "txn compare range",
    "txn range",
    "txn put",
    "txn delete",
    "txn nested",
    "answer success branch",
    "answer failure branch",
    "compact",
    "compact physical",
    "lease grant",
    "lease grant id",
    "lease revoke",
    "lease keep alive",
    "lease time to live",
    "lease time to live keys",
    "lease leases",
    "watch",
    "watch interval",
    "watch from key",
    "watch start revision",
    "watch prev_kv",
    "watch no put",
    "watch no delete",
    "watch progress notify",
    "watch fragment",
    "watch id",
    "watch cancel",
    "watch progress",
    "answer watch event",
    "answer watch prev_kv",
    "answer watch compacted",
    "answer watch refused",
    "burst",
    "answer burst of several events",
];

/// How often each feature occurred.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    counts: BTreeMap<&'static str, usize>,
    answers: usize,
    errors: usize,
}

impl Coverage {
    pub(super) fn add(&mut self, call: &Call, outcome: &Outcome) {
        self.call(call);
        self.outcome(outcome);
    }

    pub(super) fn assert_complete(&self) {
        let lacking: Vec<_> = FEATURES
            .iter()
            .map(|feature| (*feature, self.counts.get(feature).copied().unwrap_or(0)))
            .filter(|(_, count)| *count < AT_LEAST)
            .collect();
        assert!(
            lacking.is_empty(),
            "less than {AT_LEAST} times: {lacking:?}"
        );
        let (errors, answers) = (self.errors, self.answers);
        assert!(
            errors * 10 >= answers,
            "{errors} errors in {answers} answers"
        );
    }

    fn hit(&mut self, feature: &'static str, occurs: bool) {
        debug_assert!(FEATURES.contains(&feature), "{feature} is not listed");
        *self.counts.entry(feature).or_default() += usize::from(occurs);
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::Range(range) => {
                self.hit("range", true);
                self.range(range);
            }
            Call::Put(put) => {
                self.hit("put", true);
                self.put(put);
            }
            Call::Delete(delete) => {
                self.hit("delete", true);
                self.hit("delete prev_kv", delete.prev_kv);
                self.hit("delete interval", delete.range_end.len() > 1);
                self.hit("delete from key", delete.range_end == [0]);
            }
            Call::Txn(txn) => {
                self.hit("txn", true);
                self.txn(txn);
            }
            Call::Compact(compact) => {
                self.hit("compact", true);
                self.hit("compact physical", compact.physical);
            }
            Call::Grant(grant) => {
                self.hit("lease grant", true);
                self.hit("lease grant id", grant.id != 0);
            }
            Call::Revoke(_) => self.hit("lease revoke", true),
            Call::KeepAlive(_) => self.hit("lease keep alive", true),
            Call::TimeToLive(request) => {
                self.hit("lease time to live", true);
                self.hit("lease time to live keys", request.keys);
            }
            Call::Leases => self.hit("lease leases", true),
            Call::AwaitExpiry => {}
            Call::Burst(calls) => {
                self.hit("burst", true);
                calls.iter().for_each(|call| self.call(call));
            }
            Call::Watch(_, WatchCall::Create(create)) => self.watch(create),
            Call::Watch(_, WatchCall::Cancel(_)) => self.hit("watch cancel", true),
            Call::Watch(_, WatchCall::Progress) => self.hit("watch progress", true),
        }
    }

    fn range(&mut self, r: &PbRangeRequest) {
        self.hit("range interval", r.range_end.len() > 1);
        self.hit("range from key", r.range_end == [0]);
        self.hit("range limit", r.limit > 0);
        self.hit("range revision", r.revision != 0);
        self.hit("range ascending", r.sort_order == 1);
        self.hit("range descending", r.sort_order == 2);
        self.hit(
            "range order left open",
            r.sort_order == 0 && r.sort_target != 0,
        );
        self.hit("range by version", r.sort_target == 1);
        self.hit("range by create revision", r.sort_target == 2);
        self.hit("range by mod revision", r.sort_target == 3);
        self.hit("range by value", r.sort_target == 4);
        self.hit("range serializable", r.serializable);
        self.hit("range keys only", r.keys_only);
        self.hit("range count only", r.count_only);
        self.hit("range min mod revision", r.min_mod_revision != 0);
        self.hit("range max mod revision", r.max_mod_revision != 0);
        self.hit("range min create revision", r.min_create_revision != 0);
        self.hit("range max create revision", r.max_create_revision != 0);
    }

    fn put(&mut self, put: &PbPutRequest) {
        self.hit("put lease", put.lease != 0);
        self.hit("put prev_kv", put.prev_kv);
        self.hit("put ignore value", put.ignore_value);
        self.hit("put ignore lease", put.ignore_lease);
    }

    fn txn(&mut self, txn: &PbTxnRequest) {
        const TARGETS: [&str; 5] = [
            "txn compare version",
            "txn compare create revision",
            "txn compare mod revision",
            "txn compare value",
            "txn compare lease",
        ];
        const RELATIONS: [&str; 4] = [
            "txn compare equal",
            "txn compare greater",
            "txn compare less",
            "txn compare not equal",
        ];
        let index = |value: i32| usize::try_from(value).expect("known values only");
        for compare in &txn.compare {
            self.hit(TARGETS[index(compare.target)], true);
            self.hit(RELATIONS[index(compare.result)], true);
            self.hit("txn compare range", !compare.range_end.is_empty());
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(PbTxnOpRequest::RequestRange(_)) => self.hit("txn range", true),
                Some(PbTxnOpRequest::RequestPut(_)) => self.hit("txn put", true),
                Some(PbTxnOpRequest::RequestDeleteRange(_)) => self.hit("txn delete", true),
                Some(PbTxnOpRequest::RequestTxn(inner)) => {
                    self.hit("txn nested", true);
                    self.txn(inner);
                }
                None => {}
            }
        }
    }

    fn watch(&mut self, create: &WatchCreate) {
        self.hit("watch", true);
        self.hit("watch interval", create.range_end.len() > 1);
        self.hit("watch from key", create.range_end == [0]);
        self.hit("watch start revision", create.start_revision != 0);
        self.hit("watch prev_kv", create.prev_kv);
        self.hit("watch no put", create.filters.contains(&0));
        self.hit("watch no delete", create.filters.contains(&1));
        self.hit("watch progress notify", create.progress_notify);
        self.hit("watch fragment", create.fragment);
        self.hit("watch id", create.watch_id != 0);
    }

    fn outcome(&mut self, outcome: &Outcome) {
        self.answers += 1;
        match &outcome.reply {
            Err(_) => self.errors += 1,
            Ok(Reply::Burst(_)) => {
                let mut watched = outcome.watched.values().flatten();
                let several = watched.any(|r| r.events.len() > 1);
                self.hit("answer burst of several events", several);
            }
            Ok(Reply::Range(r)) => self.hit("answer more", r.more),
            Ok(Reply::Txn(r)) => {
                self.hit("answer success branch", r.succeeded);
                self.hit("answer failure branch", !r.succeeded);
            }
            Ok(_) => {}
        }
        for response in outcome.watched.values().flatten() {
            let prev_kv = response.events.iter().any(|event| event.prev_kv.is_some());
            self.hit("answer watch event", !response.events.is_empty());
            self.hit("answer watch prev_kv", prev_kv);
            self.hit("answer watch compacted", response.compact_revision != 0);
            self.hit(
                "answer watch refused",
                response.created && response.canceled,
            );
        }
    }
}
