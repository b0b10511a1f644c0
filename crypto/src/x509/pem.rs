//! PEM (RFC 7468), for what people and servers read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::Secret;

/// `der` as PEM under `label`, such as `CERTIFICATE` or `X509 CRL`.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    let mut out = String::with_capacity(64 + 2 * label.len() + der.len().div_ceil(3) * 5);
    write(&mut out, label, der);
    out
}

/// A private key in PKCS#8 as PEM. No copy of it is left behind.
#[must_use]
pub fn secret_pem(pkcs8: &Secret) -> Secret {
    let label = "PRIVATE KEY";
    let mut out = Zeroizing::new(String::with_capacity(128 + pkcs8.len() * 2));
    write(&mut out, label, pkcs8.expose());
    Secret::new(out.as_bytes().to_vec())
}

fn write(out: &mut String, label: &str, der: &[u8]) {
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    // 48 bytes are the 64 characters of a line.
    let mut line = Zeroizing::new([0_u8; 64]);
    for part in der.chunks(48) {
        let length = STANDARD.encode_slice(part, &mut *line).unwrap_or(0);
        let text = line
            .get(..length)
            .and_then(|text| str::from_utf8(text).ok());
        out.push_str(text.unwrap_or_default());
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    #[test]
    fn another_reader_reads_it_back() {
        for length in [1_usize, 47, 48, 49, 96, 500] {
            let der: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let text = pem("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64));
            let read = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(&*read, &der[..]);
            let key = secret_pem(&Secret::new(der.clone()));
            let read = PrivatePkcs8KeyDer::from_pem_slice(key.expose()).unwrap();
            assert_eq!(read.secret_pkcs8_der(), &der[..]);
        }
    }
}
