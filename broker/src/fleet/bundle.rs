//! The CAs of the fleet as agents are told them: with every answer that finds another set there.

use ephor_proto::grpc::v1;

use crate::app::Broker;
use crate::keys::Keys;
use crate::limits;

impl Broker {
    /// Every CA that is trusted now, oldest first, DER.
    pub(super) fn trusted_cas(&self) -> Vec<Vec<u8>> {
        in_der(&self.keys.load())
    }

    /// The same, with what an agent has to do about it.
    pub(super) fn ca_bundle(&self) -> v1::CaBundle {
        // Taken once: sequence and certificates are of one set.
        let keys = self.keys.load();
        v1::CaBundle {
            sequence: keys.sequence(),
            ca_certificates_der: in_der(&keys),
            issuing_key_id: keys.ca().certificate().key_id().to_vec(),
            renew_within_milliseconds: self.schedule.ca_lead.min(limits::RENEW_UNDER_NEW_CA_MILLIS),
        }
    }
}

fn in_der(keys: &Keys) -> Vec<Vec<u8>> {
    keys.trusted().iter().map(|ca| ca.der().to_vec()).collect()
}
