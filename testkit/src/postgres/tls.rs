//! A server that speaks TLS, with a certificate made by openssl: none of our code has a part in what a
//! client checks, or in how the server checks a client.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use super::Options;

/// The CA of a server's certificate, that certificate for `localhost`, and its key; PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// What clients trust.
    pub ca: Vec<u8>,
    key: Vec<u8>,
    certificate: Vec<u8>,
}

/// Makes the three in the current directory.
const MAKE: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db -keyout key.pem -out csr.pem
printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth\\n' > ext
openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem
";

impl Tls {
    /// New ones.
    ///
    /// # Errors
    /// When openssl is not there, or refuses.
    pub fn make() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut openssl = Command::new("sh");
        openssl.args(["-ec", MAKE]).current_dir(dir.path());
        let done = openssl.output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "openssl: {said}");
        let read = |name: &str| std::fs::read(Path::join(dir.path(), name));
        Ok(Self {
            ca: read("ca.pem")?,
            key: read("key.pem")?,
            certificate: read("cert.pem")?,
        })
    }

    /// What a cluster needs to speak TLS.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            settings: vec![
                "ssl = on".to_owned(),
                "ssl_cert_file = 'server.crt'".to_owned(),
                "ssl_key_file = 'server.key'".to_owned(),
            ],
            hba: Vec::new(),
            files: vec![
                ("server.crt".to_owned(), self.certificate.clone()),
                ("server.key".to_owned(), self.key.clone()),
            ],
        }
    }
}
