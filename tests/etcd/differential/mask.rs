//! The only place where differences are forgiven: ids that each server chooses for itself.
//! Masked: `cluster_id`, `member_id` and `raft_term` if they are this server's own, as learned from
//! its status, and lease ids that the server chose. A missing header, a zero, or anybody else's id
//! stays as it is. The keys of a lease are sorted, as etcd lists them in random order.
use etcd_client::proto::{
    PbCompare, PbKeyValue, PbResponseHeader, PbStatusResponse, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnResponse, PbWatchResponse,
};

use super::wire::{Call, LeaseNames, Reply};

/// What stands for each server's own ids.
const OWN: u64 = 1;

/// One server's own ids.
#[derive(Debug, Default)]
pub(super) struct Mask {
    header: PbResponseHeader,
    pub(super) leases: LeaseNames,
}

impl Mask {
    pub(super) fn learn(status: &PbStatusResponse) -> Self {
        let header = status.header.expect("a header is always there");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
        Self {
            header,
            leases: LeaseNames::default(),
        }
    }

    /// The call with the lease ids that this server knows.
    pub(super) fn call(&self, call: &Call) -> Call {
        let mut call = call.clone();
        match &mut call {
            Call::Put(put) => put.lease = self.leases.actual(put.lease),
            Call::Txn(txn) => self.txn_call(txn),
            Call::Revoke(revoke) => revoke.id = self.leases.actual(revoke.id),
            Call::KeepAlive(id) => *id = self.leases.actual(*id),
            Call::TimeToLive(request) => request.id = self.leases.actual(request.id),
            Call::Grant(grant) => grant.id = self.leases.actual(grant.id),
            Call::Range(_) | Call::Delete(_) | Call::Compact(_) | Call::Leases => {}
            Call::Watch(..) | Call::AwaitExpiry | Call::Burst(_) => {}
        }
        call
    }

    fn txn_call(&self, txn: &mut PbTxnRequest) {
        for PbCompare { target_union, .. } in &mut txn.compare {
            if let Some(PbTargetUnion::Lease(id)) = target_union {
                *id = self.leases.actual(*id);
            }
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match &mut op.request {
                Some(PbTxnOpRequest::RequestPut(put)) => put.lease = self.leases.actual(put.lease),
                Some(PbTxnOpRequest::RequestTxn(inner)) => self.txn_call(inner),
                _ => {}
            }
        }
    }

    pub(super) fn reply(&mut self, call: &Call, reply: &mut Reply) {
        match reply {
            Reply::Range(r) => {
                self.header(&mut r.header);
                self.kvs(&mut r.kvs);
            }
            Reply::Put(r) => {
                self.header(&mut r.header);
                self.kvs(&mut r.prev_kv);
            }
            Reply::Delete(r) => {
                self.header(&mut r.header);
                self.kvs(&mut r.prev_kvs);
            }
            Reply::Txn(r) => self.txn_reply(r),
            Reply::Compact(r) => self.header(&mut r.header),
            Reply::Grant(r) => {
                if matches!(call, Call::Grant(grant) if grant.id == 0) {
                    self.leases.add(r.id);
                }
                self.header(&mut r.header);
                r.id = self.leases.named(r.id);
            }
            Reply::Revoke(r) => self.header(&mut r.header),
            Reply::KeepAlive(r) => {
                self.header(&mut r.header);
                r.id = self.leases.named(r.id);
            }
            Reply::TimeToLive(r) => {
                self.header(&mut r.header);
                r.id = self.leases.named(r.id);
                r.keys.sort();
            }
            Reply::Leases(r) => {
                self.header(&mut r.header);
                for lease in &mut r.leases {
                    lease.id = self.leases.named(lease.id);
                }
            }
            Reply::Sent | Reply::Burst(_) => {}
        }
    }

    fn txn_reply(&self, reply: &mut PbTxnResponse) {
        self.header(&mut reply.header);
        for response in reply
            .responses
            .iter_mut()
            .filter_map(|op| op.response.as_mut())
        {
            match response {
                PbTxnOpResponse::ResponseRange(r) => {
                    self.header(&mut r.header);
                    self.kvs(&mut r.kvs);
                }
                PbTxnOpResponse::ResponsePut(r) => {
                    self.header(&mut r.header);
                    self.kvs(&mut r.prev_kv);
                }
                PbTxnOpResponse::ResponseDeleteRange(r) => {
                    self.header(&mut r.header);
                    self.kvs(&mut r.prev_kvs);
                }
                PbTxnOpResponse::ResponseTxn(inner) => self.txn_reply(inner),
            }
        }
    }

    pub(super) fn watched(&self, response: &mut PbWatchResponse) {
        self.header(&mut response.header);
        for event in &mut response.events {
            self.kvs(&mut event.kv);
            self.kvs(&mut event.prev_kv);
        }
    }

    fn header(&self, header: &mut Option<PbResponseHeader>) {
        let Some(header) = header else { return };
        let own = |id: &mut u64, known| *id = if *id == known { OWN } else { *id };
        own(&mut header.cluster_id, self.header.cluster_id);
        own(&mut header.member_id, self.header.member_id);
        own(&mut header.raft_term, self.header.raft_term);
    }

    fn kvs<'a>(&self, kvs: impl IntoIterator<Item = &'a mut PbKeyValue>) {
        for kv in kvs {
            kv.lease = self.leases.named(kv.lease);
        }
    }
}
