//! A store of a version that had no CA for databases.

use ephor_crypto::digest::hex;
use ephor_proto::http::admin;

use super::*;
use crate::ledger::Reader;
use crate::recover::{RestoreOptions, restore};

fn make_older(live: &Live) {
    let raw = rusqlite::Connection::open(live.config.database()).unwrap();
    let gone = raw.execute("DELETE FROM key WHERE name = 'database'", []);
    assert_eq!(gone.unwrap(), 1);
}

async fn end(broker: &Arc<Broker>) {
    broker.tasks.shutdown(Duration::from_secs(30)).await;
    broker.ledger.clone().shutdown();
}

/// The key identifiers of CAs for databases that became active, in order.
fn on_record(reader: &Reader) -> Vec<String> {
    let stored = reader.events(0, 10_000).unwrap();
    let events = stored.into_iter().map(|stored| stored.event().unwrap());
    let of_databases = events.filter(|event| {
        event.event_type == "operate.key_activated" && event.facts["key"] == "database"
    });
    of_databases
        .map(|event| event.facts["key_id"].clone())
        .collect()
}

fn id(broker: &Broker) -> String {
    hex(&broker.keys.load().database_ca().sha256())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gets_one_at_its_start_and_on_record_and_so_does_a_backup_of_it() {
    let live = Live::start().await;
    live.connections.shutdown(Duration::from_secs(30)).await;
    end(&live.broker).await;
    make_older(&live);
    let (broker, sockets) = open(&live.config, Inherited::none()).await.unwrap();
    drop(sockets);
    let first = id(&broker);
    assert_eq!(
        on_record(&broker.ledger.reader()),
        std::slice::from_ref(&first)
    );
    end(&broker).await;
    // Once.
    let (broker, sockets) = open(&live.config, Inherited::none()).await.unwrap();
    drop(sockets);
    assert_eq!(id(&broker), first);
    assert_eq!(on_record(&broker.ledger.reader()).len(), 1);

    make_older(&live);
    let asked = admin::Backup {
        to: "/elsewhere".to_owned(),
        with_master_key: false,
    };
    broker.begin_backup(asked).unwrap();
    let mut last = broker.last_backup().unwrap();
    while last.state == admin::BackupStage::Running {
        tokio::time::sleep(Duration::from_millis(5)).await;
        last = broker.last_backup().unwrap();
    }
    end(&broker).await;
    let options = RestoreOptions {
        from: last.at.into(),
        force: true,
    };
    restore(&live.config, &options, broker.clock.wall()).unwrap();
    let (broker, sockets) = open(&live.config, Inherited::none()).await.unwrap();
    drop(sockets);
    assert_ne!(id(&broker), first);
    assert_eq!(on_record(&broker.ledger.reader()), [first, id(&broker)]);
    end(&broker).await;
}
