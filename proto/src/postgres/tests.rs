//! URLs, right, wrong and hostile.

use proptest::prelude::*;

use super::*;

fn url(text: &str) -> Result<Url, BadUrl> {
    text.parse()
}

#[test]
fn urls_of_every_form() {
    for (text, user, address, database) in [
        (
            "postgres://ephor@db1/orders",
            Some("ephor"),
            "db1:5432",
            Some("orders"),
        ),
        (
            "postgresql://ephor@db1.prod:6000/orders",
            Some("ephor"),
            "db1.prod:6000",
            Some("orders"),
        ),
        ("postgres://e@[::1]:7/o", Some("e"), "[::1]:7", Some("o")),
        ("postgres://e@[::1]/o", Some("e"), "[::1]:5432", Some("o")),
        (
            "postgres:///shop",
            None,
            "/var/run/postgresql:5432",
            Some("shop"),
        ),
        ("postgres://", None, "/var/run/postgresql:5432", None),
        (
            "postgres://a%40b@/x%2Fy?host=/tmp/s&port=99",
            Some("a@b"),
            "/tmp/s:99",
            Some("x/y"),
        ),
        (
            "postgres://u@%2Ftmp%2Fs:99/d",
            Some("u"),
            "/tmp/s:99",
            Some("d"),
        ),
    ] {
        let found = url(text).unwrap();
        assert_eq!(found.user.as_deref(), user, "{text}");
        assert_eq!(found.address.to_string(), address, "{text}");
        assert_eq!(found.database.as_deref(), database, "{text}");
        assert_eq!(url(&found.to_string()), Ok(found), "{text}");
    }
}

#[test]
fn wrong_urls() {
    use BadUrl::{
        Database, Escape, Host, Parameter, Password, Port, Rest, Scheme, SeveralHosts, SocketDir,
        TooLong, User,
    };
    for (text, problem) in [
        ("mysql://a@b/c", Scheme),
        ("a@b/c", Scheme),
        ("postgres://u:p@h/d", Password),
        ("postgres://u:@h/d", Password),
        // A password with a slash, a question mark, an at sign: none may be read as something else.
        ("postgres://u:p/q@h/d", Password),
        ("postgres://u:p?q@h/d", Password),
        ("postgres://u:p@q@h/d", Password),
        ("postgres://u@h/d?password=p", Password),
        ("postgres://u@h/d?passfile=/x", Password),
        ("postgres://u@h/d?sslmode=disable", Parameter),
        ("postgres://u@h/d?options=-crole=x", Parameter),
        ("postgres://u@h/d?host", Parameter),
        ("postgres://u@a,b/d", SeveralHosts),
        ("postgres://u@a b/d", Host),
        ("postgres://u@a/d?host=b;c", Host),
        ("postgres://u@::1/d", Host),
        ("postgres://u@[a]/d", Host),
        ("postgres://u@a:0/d", Port),
        ("postgres://u@a:65536/d", Port),
        ("postgres://u@a:+1/d", Port),
        ("postgres://u@a:/d", Port),
        ("postgres://u@/d?host=/a/../b", SocketDir),
        ("postgres://u@/d?host=/a%0ab", SocketDir),
        ("postgres://%zz@a/d", Escape),
        ("postgres://%ff@a/d", Escape),
        ("postgres://u%0a@a/d", User(BadIdentifier::Control)),
        ("postgres://@a/d", User(BadIdentifier::Empty)),
        ("postgres://u@a/%00", Database(BadIdentifier::Control)),
        ("postgres://u@a/d/e", Rest),
        ("postgres://u@a/d#e", Rest),
    ] {
        assert_eq!(url(text), Err(problem), "{text}");
        assert!(!problem.to_string().contains("u:p"));
    }
    assert_eq!(
        url(&format!("postgres://{}", "a".repeat(1100))),
        Err(TooLong)
    );
}

#[test]
fn addresses_alone() {
    for (text, shown) in [
        ("db2", "db2:5432"),
        ("db2:5433", "db2:5433"),
        ("10.0.0.1", "10.0.0.1:5432"),
        ("[2001:db8::1]", "[2001:db8::1]:5432"),
        ("/tmp/s:99", "/tmp/s:99"),
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
    }
    for bad in ["", "a:b", "::1", "a b", "a,b", "[::1", "http://a"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[test]
fn what_is_composed_is_escaped() {
    let address = Address::of("/tmp/a b", 5433).unwrap();
    let parts = Parts {
        user: "u@v:w/x",
        password: "p@/?#&= %",
        address: &address,
        database: "d?e",
        parameters: &[
            ("sslmode", "disable"),
            ("sslrootcert", ""),
            ("options", "-c a=b"),
        ],
    };
    let mut out = String::new();
    compose(&mut out, &parts);
    assert_eq!(
        out,
        "postgresql://u%40v%3Aw%2Fx:p%40%2F%3F%23%26%3D%20%25@/d%3Fe\
         ?host=%2Ftmp%2Fa%20b&port=5433&sslmode=disable&options=-c%20a%3Db"
    );
    assert!(out.len() <= composed_len(&parts));
}

#[test]
fn logins_as_people_read_them() {
    for (name, short) in [
        (
            "eph_orders_db_ab3c5d_0123456789abcdefghjkmn7kq2",
            "eph_orders_db_7kq2",
        ),
        (
            "eph_orders_db_ab3c5d_tooshort",
            "eph_orders_db_ab3c5d_tooshort",
        ),
        ("alice", "alice"),
        ("", ""),
    ] {
        assert_eq!(short_login(name), short);
    }
}

#[test]
fn sessions_start_as_a_role() {
    assert_eq!(start_as("orders_rw"), "-c role=orders_rw");
    assert_eq!(start_as("Orders RW\\"), "-c role=Orders\\ RW\\\\");
    assert_eq!(start_as(""), "");
}

#[test]
fn identifiers() {
    let long = "a".repeat(63);
    for good in [
        "orders_rw",
        "Orders RW",
        "\"; DROP ROLE x; --",
        "é",
        long.as_str(),
    ] {
        assert_eq!(check_identifier(good), Ok(()), "{good}");
    }
    let longer = "a".repeat(64);
    for bad in [
        "",
        "a\0b",
        "a\nb",
        "a\u{202e}b",
        "\u{feff}a",
        longer.as_str(),
    ] {
        assert!(check_identifier(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused_and_never_shows_itself(text in "\\PC{0,80}") {
        let _ = url(&text);
        let _ = url(&format!("postgres://{text}"));
    }

    #[test]
    fn a_composed_url_is_as_long_as_foretold(user in "\\PC{0,20}", password in "\\PC{0,40}", database in "\\PC{0,20}") {
        let address = Address::of("db1", 5432).unwrap();
        let parts = Parts { user: &user, password: &password, address: &address, database: &database, parameters: &[] };
        let mut out = String::with_capacity(composed_len(&parts));
        let before = out.capacity();
        compose(&mut out, &parts);
        prop_assert_eq!(out.capacity(), before);
    }
}
