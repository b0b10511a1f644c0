//! One's own certificate, and who may be on the other side.

use std::sync::Arc;
use std::time::Duration;

use ephor_client::{Closed, Peers};
use rustls::AlertDescription;
use tokio::io::AsyncReadExt;

use super::fake::{Fake, POLL, Pair, alert, connect, now, root, serial, until};

#[tokio::test]
async fn it_is_renewed_and_connections_stay() {
    let mut fake = Fake::start().await;
    fake.state().ttl = 10;
    fake.state().refresh_after = Duration::from_millis(200);
    let pair = Pair::start(&mut fake).await;
    let before = pair.client.status();
    let (served, _called) = pair.connect().await.unwrap();
    let first = served.peer().serial.clone();
    let renewed = pair.client.renewed(&before).await;
    assert_ne!(renewed.serial, before.serial);
    // One that has happened is not waited for: from here on none would come.
    fake.state().refuses = true;
    let at_once = tokio::time::timeout(Duration::from_secs(5), pair.client.renewed(&before));
    assert_ne!(at_once.await.unwrap().serial, before.serial);
    fake.state().refuses = false;
    let (again, _called_again) = pair.connect().await.unwrap();
    assert_ne!(again.peer().serial, first);
    assert_eq!((served.closed(), pair.server.connections()), (None, 2));
    // The end of the credential ends what was made with any certificate of it.
    let newest = pair.client.status().serial;
    fake.publish(0, &[serial(&newest)]);
    until("the old one's end", || {
        served.closed() == Some(Closed::Revoked)
    })
    .await;
    until("the new one's", || again.closed() == Some(Closed::Revoked)).await;
}

#[tokio::test]
async fn an_expired_one_is_never_shown_and_ends_what_was_made_with_it() {
    let mut fake = Fake::start().await;
    let callers = Pair::start(&mut fake).await;
    fake.state().ttl = 2;
    let (keeping, brief) = (fake.builder("svc").keep_past_expiry(), fake.builder("web"));
    let pair = Pair::of(keeping, brief).await;
    // From here on the agent refuses to renew.
    fake.state().refuses = true;
    let (kept, _called) = pair.connect().await.unwrap();
    let (mut ends, _other) = connect(&callers.listener, &pair.connector).await.unwrap();
    assert!(ends.read(&mut [0]).await.is_err());
    assert_eq!(ends.closed(), Some(Closed::Expired));
    assert_eq!(kept.closed(), None);
    assert!(pair.client.status().expires_at.as_unix_seconds() < now());
    let (refused, _) = connect(&callers.listener, &pair.connector)
        .await
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("no certificates"),
        "nothing was shown: {text}"
    );
    let expired = pair.client.status();
    fake.state().refuses = false;
    pair.client.renewed(&expired).await;
    connect(&callers.listener, &pair.connector).await.unwrap();
}

#[tokio::test]
async fn only_the_peers_that_were_named_take_part() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let other = fake.builder("web2").start().await.unwrap();
    let service = Peers::trust_domain("td.test").unwrap();
    let connector = ephor_client::Connector::new(&other, service, &[]).unwrap();
    let (_, heard) = connect(&pair.listener, &connector).await.unwrap_err();
    let denied = Some(AlertDescription::AccessDenied);
    assert_eq!(alert(&heard), denied);
    let nobody = Peers::any_of([]).unwrap();
    let connector = ephor_client::Connector::new(&pair.client, nobody, &[]).unwrap();
    let (refused, _) = connect(&pair.listener, &connector).await.unwrap_err();
    assert_eq!(alert(&refused), denied);
}

#[tokio::test]
async fn a_ca_that_leaves_the_bundle_takes_its_connections_along() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let (served, _called) = pair.connect().await.unwrap();
    let next = root();
    {
        // Published ahead: nothing changes.
        let mut state = fake.state();
        state.roots.push(next.certificate().clone());
    }
    fake.seen().await;
    assert_eq!(served.closed(), None);
    {
        let mut state = fake.state();
        state.roots.remove(0);
        state.ca = Arc::new(next);
    }
    until("the end", || served.closed() == Some(Closed::Distrusted)).await;
    assert!(pair.connect().await.is_err());
}

#[tokio::test]
async fn configurations_outlive_the_identity_that_made_them() {
    let mut fake = Fake::start().await;
    let pair = Pair::start(&mut fake).await;
    let Pair {
        server,
        client,
        listener,
        connector,
    } = pair;
    let web = serial(&client.status().serial);
    drop((server, client));
    let (served, _called) = connect(&listener, &connector).await.unwrap();
    fake.publish(0, &[web]);
    until("the end", || served.closed() == Some(Closed::Revoked)).await;
}

#[tokio::test]
async fn when_nobody_looks_any_more_nobody_is_admitted() {
    let mut fake = Fake::start().await;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let builder = fake.builder("svc");
    let server = runtime.spawn(builder.start()).await.unwrap().unwrap();
    let client = fake.builder("web").start().await.unwrap();
    let callers = Peers::id("spiffe://td.test/web").unwrap();
    let listener = ephor_client::Listener::bind(("127.0.0.1", 0), &server, callers, &[]).await;
    let listener = listener.unwrap();
    let service = Peers::id("spiffe://td.test/svc").unwrap();
    let connector = ephor_client::Connector::new(&client, service, &[]).unwrap();
    connect(&listener, &connector).await.unwrap();
    // The runtime on which it looked is gone, and with it the poller.
    runtime.shutdown_background();
    let mut tries = 0;
    while connect(&listener, &connector).await.is_ok() {
        tries += 1;
        assert!(tries < 500, "still admitted");
        tokio::time::sleep(POLL).await;
    }
}
