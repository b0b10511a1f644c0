//! What a login shows of a password, and what only seems to.

use std::num::NonZeroU32;

use ephor_crypto::Secret;
use ephor_testkit::postgres::Options as ClusterOptions;

use super::kit::World;
use crate::kind::postgres::probe::{AsksFor, Who, asks_for};

const ONCE: NonZeroU32 = NonZeroU32::MIN;
/// Verifiers of two passwords, with one salt.
const SALT: &str = "AAECAwQFBgcICQoLDA0ODw==";
const NOBODYS: &str = "SCRAM-SHA-256$1:AAECAwQFBgcICQoLDA0ODw==$eGH0Mey70mPzaFeJx7m\
    MGllZaPQWxC5TVZXJvrOCNTo=:puszgO2u6HaVLrGCnzSPeqfnzsNwOb9i+MpCw9FssoU=";
const FORGED: &str = "SCRAM-SHA-256$1:AAECAwQFBgcICQoLDA0ODw==$y1okR+PwWra72zvAW4F\
    WK/lAzvSQAU6jduyA7Y5Xm2U=:fuA7bsOv4pkxOnQ8Oe1lyQBWvhjGpI/RGxewjD51piw=";

#[tokio::test(flavor = "multi_thread")]
async fn only_the_password_itself_shows_that_it_is_the_one_in_force() {
    let world = World::own(ClusterOptions::default()).await;
    let access = world.access();
    let secret = |text: &str| Secret::from_string(text.to_owned());
    let (nobody, other) = (secret("of-nobody"), secret("of-somebody"));
    let asked = async |password| {
        let who = Who {
            user: "fixed",
            database: "orders",
            password,
        };
        asks_for(who, &access.hosts[0], &access.tls).await
    };
    let set = |rest: &str| world.ask(&format!("alter role fixed {rest}"));
    world.ask("create role fixed nologin");
    set(&format!("password '{NOBODYS}'"));
    let salt = SALT.to_owned();
    assert_eq!(asked(None).await, AsksFor::Password { salt: salt.clone() });
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Shut);
    assert_eq!(asked(Some((&other, ONCE))).await, AsksFor::Another);
    // Whoever may set it takes the salt that everybody can see.
    set(&format!("password '{FORGED}'"));
    assert_eq!(asked(None).await, AsksFor::Password { salt });
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Another);
    assert_eq!(asked(Some((&other, ONCE))).await, AsksFor::Shut);
    // No password, another number of rounds, one that is over.
    set("password null");
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Another);
    set("password 'of-nobody'");
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Another);
    set(&format!("password '{NOBODYS}' valid until '2001-01-01'"));
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Another);
    // Open: that is the one in force, and it is not shut.
    set("valid until 'infinity' login");
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Open);
    set("nologin");
    assert_eq!(asked(Some((&nobody, ONCE))).await, AsksFor::Shut);
}
