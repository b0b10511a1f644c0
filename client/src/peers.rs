//! Who may be on the other side: SPIFFE IDs, and nothing that a peer says about itself.

use ephor_proto::spiffe::{SpiffeId, TrustDomain};

use crate::error::Error;

/// The peers that a listener takes or a connector wants. Any of its rules is enough; their
/// certificates must hold in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Is(SpiffeId),
    Below(SpiffeId),
    MemberOf(TrustDomain),
}

impl Peers {
    /// Exactly this one, such as `spiffe://prod.example/orders/web`.
    ///
    /// # Errors
    /// When it is no SPIFFE ID.
    pub fn id(id: &str) -> Result<Self, Error> {
        Self::any_of([id])
    }

    /// Exactly one of these. Nobody, when there are none.
    ///
    /// # Errors
    /// When one of them is no SPIFFE ID.
    pub fn any_of<'a>(ids: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let rules = ids.into_iter().map(|id| Ok(Rule::Is(id.parse()?)));
        rules.collect::<Result<_, Error>>().map(Self)
    }

    /// Everybody whose path is below this one: `spiffe://prod.example/orders` takes
    /// `spiffe://prod.example/orders/web`, not `spiffe://prod.example/orders` itself and not
    /// `spiffe://prod.example/orders-old`.
    ///
    /// # Errors
    /// When it is no SPIFFE ID.
    pub fn below(id: &str) -> Result<Self, Error> {
        Ok(Self(vec![Rule::Below(id.parse()?)]))
    }

    /// Every workload, person and CI job of a trust domain, such as `prod.example`.
    ///
    /// # Errors
    /// When it is no name of a trust domain.
    pub fn trust_domain(name: &str) -> Result<Self, Error> {
        Ok(Self(vec![Rule::MemberOf(name.parse()?)]))
    }

    /// Those of either.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn include(&self, id: &SpiffeId) -> bool {
        self.0.iter().any(|rule| match rule {
            Rule::Is(one) => one == id,
            Rule::MemberOf(domain) => id.is_member_of(domain),
            Rule::Below(above) => {
                let rest = id.as_str().strip_prefix(above.as_str());
                rest.is_some_and(|rest| rest.starts_with('/'))
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn includes(peers: &Peers, id: &str) -> bool {
        peers.include(&id.parse().unwrap())
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_one() {
        let web = "spiffe://td.x/orders/web";
        let exact = Peers::id(web).unwrap();
        assert!(includes(&exact, web) && !includes(&exact, "spiffe://td.x/orders/web2"));
        let below = Peers::below("spiffe://td.x/orders").unwrap();
        assert!(includes(&below, web) && includes(&below, "spiffe://td.x/orders/a/b"));
        for other in [
            "spiffe://td.x/orders",
            "spiffe://td.x/orders-old/web",
            "spiffe://td.xy/orders/web",
        ] {
            assert!(!includes(&below, other), "{other}");
        }
        let domain = Peers::trust_domain("td.x").unwrap();
        assert!(includes(&domain, web) && !includes(&domain, "spiffe://td.x.y/orders/web"));
    }

    #[test]
    fn any_of_none_is_nobody_and_or_adds() {
        let nobody = Peers::any_of([]).unwrap();
        assert!(!includes(&nobody, "spiffe://td/a"));
        let two = nobody.or(Peers::any_of(["spiffe://td/a", "spiffe://td/b"]).unwrap());
        assert!(includes(&two, "spiffe://td/a") && includes(&two, "spiffe://td/b"));
        assert!(Peers::id("https://td/a").is_err() && Peers::below("td/a").is_err());
        assert!(Peers::trust_domain("TD").is_err());
    }
}
