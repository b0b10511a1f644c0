//! Looks at the index of lists, and fetches those that changed.
//!
//! Where the lists are stands in our own certificate. They come over plain HTTP, because fetching
//! them under the CA that they are about would be circular: nothing is believed here but what is
//! signed, and what somebody in between can do is to withhold.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ephor_proto::http::lists::{CrlIndex, CrlVersion};
use ephor_proto::time::Boottime;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Lists;
use crate::backoff::{Backoff, jittered};
use crate::clock;
use crate::identity::Shared;
use crate::limits;
use crate::wire::Http;

/// Looks for ever; says through `looked` that the first look is over, whatever came of it.
pub async fn run(shared: Arc<Shared>, looked: watch::Sender<bool>) {
    let _blind = Blind(Arc::clone(&shared));
    let mut poller = Poller::default();
    let most = limits::POLL_RETRY_MAX.max(shared.poll_every);
    let mut backoff = Backoff::new(shared.poll_every, most);
    let mut is_away = false;
    loop {
        let pause = match poller.look(&shared).await {
            Ok(()) => {
                if is_away {
                    tracing::info!("the revocation lists can be reached again");
                }
                is_away = false;
                backoff.reset();
                shared.poll_every.mul_f64(0.9) + jittered(shared.poll_every / 10)
            }
            Err(error) => {
                if !is_away {
                    tracing::warn!(%error, "the revocation lists cannot be reached; what is known of them goes on");
                }
                is_away = true;
                poller.connection = None;
                backoff.next()
            }
        };
        looked.send_replace(true);
        // Not at once even when a peer waits for it: that would be theirs to speed up.
        tokio::time::sleep(pause / 4).await;
        let _ = tokio::time::timeout(pause - pause / 4, shared.lists.look.notified()).await;
    }
}

/// When nobody looks any more, nothing is admitted.
struct Blind(Arc<Shared>);

impl Drop for Blind {
    fn drop(&mut self) {
        self.0.lists.is_blind.store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Poller {
    connection: Option<(Origin, Http)>,
    /// The version of each list that was taken last.
    versions: HashMap<String, String>,
    /// The version of each list that could not be taken, or was none newer, and when that was tried
    /// last.
    fruitless: HashMap<String, (String, Boottime)>,
}

impl Poller {
    async fn look(&mut self, shared: &Shared) -> io::Result<()> {
        let origin = Origin::of(&shared.held.load().crl)?;
        let index = self
            .get(&origin, &origin.index, limits::INDEX_BYTES)
            .await?;
        let index = index.map_err(|why| {
            io::Error::other(format!("{}{}: {why}", origin.authority, origin.index))
        })?;
        let index: CrlIndex = serde_json::from_slice(&index).map_err(io::Error::other)?;
        self.fetch_lists(shared, &origin, &index).await?;
        let published: HashSet<&str> = index.lists.iter().map(|list| &*list.url).collect();
        self.versions
            .retain(|url, _| published.contains(url.as_str()));
        self.fruitless
            .retain(|url, _| published.contains(url.as_str()));
        shared.lists.retain(&published);
        // Of a list that is not known at all nobody is admitted.
        let is_behind = |list: &&CrlVersion| {
            self.versions.get(&list.url) != Some(&list.version)
                && shared.lists.list(&list.url).is_some()
        };
        if !index.lists.iter().any(|list| is_behind(&list)) {
            shared.lists.is_current();
        }
        Ok(())
    }

    /// Brings up to date what can be. One list that cannot must not hide the others.
    async fn fetch_lists(
        &mut self,
        shared: &Shared,
        origin: &Origin,
        index: &CrlIndex,
    ) -> io::Result<()> {
        let mut is_failing = false;
        for list in &index.lists {
            let Some(path) = origin.path_of(&list.url) else {
                continue;
            };
            if !self.is_due(&shared.lists, list) || self.was_tried_lately(list) {
                continue;
            }
            match self.get(origin, path, limits::LIST_BYTES).await {
                Ok(Ok(der)) => self.take(shared, list, der).await?,
                Ok(Err(why)) => self.refuse(list, &why),
                Err(error) if is_failing => return Err(error),
                Err(error) => {
                    is_failing = true;
                    self.refuse(list, &error);
                }
            }
        }
        Ok(())
    }

    /// What did not help a moment ago is not fetched again and again.
    fn was_tried_lately(&self, list: &CrlVersion) -> bool {
        let tried = self.fruitless.get(&list.url);
        tried.is_some_and(|(version, at)| {
            let since = Duration::from_millis(clock::boottime().millis_since(*at));
            *version == list.version && since < limits::POLL_RETRY_MAX
        })
    }

    /// Fetching this version brought nothing; gives the version of which that was known.
    fn tried(&mut self, list: &CrlVersion) -> Option<String> {
        let tried = (list.version.clone(), clock::boottime());
        Some(self.fruitless.insert(list.url.clone(), tried)?.0)
    }

    fn refuse(&mut self, list: &CrlVersion, why: &dyn std::fmt::Display) {
        if self.tried(list).as_ref() != Some(&list.version) {
            tracing::warn!(url = list.url, %why, "a revocation list was not taken; trying again");
        }
    }

    /// Whether it changed, or is past the half of its life.
    fn is_due(&self, lists: &Lists, list: &CrlVersion) -> bool {
        if self.versions.get(&list.url) != Some(&list.version) {
            return true;
        }
        lists.list(&list.url).is_none_or(|known| {
            let half = (known.next_update() - known.this_update()) / 2;
            clock::unix_seconds() > known.next_update() - half
        })
    }

    /// Reading a long list takes milliseconds, which are not those of whoever shares our runtime.
    async fn take(&mut self, shared: &Shared, list: &CrlVersion, der: Bytes) -> io::Result<()> {
        let (lists, url) = (Arc::clone(&shared.lists), list.url.clone());
        let taken = tokio::task::spawn_blocking(move || lists.take(&url, &der));
        match taken.await.map_err(io::Error::other)? {
            Ok(newer) => {
                self.versions.insert(list.url.clone(), list.version.clone());
                self.fruitless.remove(&list.url);
                match newer {
                    Some(newer) => shared.live.close_listed(newer.serials()),
                    // Past the half of its life, and there is no newer one.
                    None => drop(self.tried(list)),
                }
            }
            Err(error) => self.refuse(list, &error),
        }
        Ok(())
    }

    /// The outer error is about the broker, the inner one about this path.
    async fn get(&mut self, origin: &Origin, path: &str, most: usize) -> io::Result<Given> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(limits::FETCH, self.fetch(origin, path, most))
            .await
            .map_err(late)?
    }

    async fn fetch(&mut self, origin: &Origin, path: &str, most: usize) -> io::Result<Given> {
        let kept = self.connection.take();
        let kept = kept.filter(|(of, http)| of == origin && http.is_open());
        let mut http = match kept {
            Some((_, http)) => http,
            None => Http::over(TcpStream::connect((&*origin.host, origin.port)).await?).await?,
        };
        let request = Request::get(path).header(header::HOST, &origin.authority);
        let request = request.body(Full::default()).map_err(io::Error::other)?;
        let reply = match http.call(request, most).await {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Ok(Err(NotGiven::TooLarge(most)));
            }
            reply => reply?,
        };
        self.connection = Some((origin.clone(), http));
        if !reply.status.is_success() {
            return Ok(Err(NotGiven::Status(reply.status)));
        }
        Ok(Ok(Bytes::copy_from_slice(&reply.body)))
    }
}

/// A body, or why there is none.
type Given = Result<Bytes, NotGiven>;

/// What a path gives instead of a body.
#[derive(Debug, Error)]
enum NotGiven {
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
}

/// Where all lists of an installation are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    host: String,
    port: u16,
    authority: String,
    /// The path of the index: that of a list without its number.
    index: String,
}

impl Origin {
    /// From the URL of one list.
    fn of(url: &str) -> io::Result<Self> {
        let wrong = || io::Error::other(format!("{url} is no http URL of a revocation list"));
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or_else(wrong)?;
        let (index, _number) = uri.path().rsplit_once('/').ok_or_else(wrong)?;
        if index.is_empty() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            index: index.to_owned(),
        })
    }

    /// The path of a list, if it is one of these: an index cannot send us elsewhere.
    fn path_of<'a>(&self, url: &'a str) -> Option<&'a str> {
        let rest = url.strip_prefix("http://")?;
        let path = rest.strip_prefix(&*self.authority)?;
        let number = path.strip_prefix(&*self.index)?.strip_prefix('/')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(path)
    }
}
