//! The CAs of the fleet as agents are told them: with every answer that finds another set there.

use ephor_proto::grpc::v1;

use crate::app::Broker;
use crate::limits;

impl Broker {
    /// Every CA that is trusted now, oldest first, DER.
    pub(super) fn trusted_cas(&self) -> Vec<Vec<u8>> {
        let keys = self.keys.load();
        let certificates = keys.cas().iter().map(|held| held.ca.certificate());
        certificates.map(|ca| ca.der().to_vec()).collect()
    }

    /// The same, with what an agent has to do about it.
    pub(super) fn ca_bundle(&self) -> v1::CaBundle {
        let keys = self.keys.load();
        let certificates = keys.cas().iter().map(|held| held.ca.certificate());
        v1::CaBundle {
            sequence: keys.sequence(),
            ca_certificates_der: certificates.map(|ca| ca.der().to_vec()).collect(),
            issuing_key_id: keys.ca().certificate().key_id().to_vec(),
            renew_within_milliseconds: self.schedule.ca_lead.min(limits::RENEW_UNDER_NEW_CA_MILLIS),
        }
    }
}
