//! Meta commands over a socket: every flag, every return code, what is wrong, and in which order.

mod common;

use std::net::TcpStream;

use common::{Client, TestServer};

/// Says each line and insists on its answer; `\n` stands for the line end.
fn converse(client: &mut Client<TcpStream>, talk: &[(&str, &str)]) {
    for (request, answer) in talk {
        let wire = |text: &str| text.replace('\n', "\r\n");
        // The one behind it shows that there is no more of an answer than expected.
        let request = format!("{}mn\r\n", wire(request));
        client.ask(request, format!("{}MN\r\n", wire(answer)));
    }
}

fn talk(talk: &[(&str, &str)]) {
    let server = TestServer::start();
    converse(&mut server.connect(), talk);
}

/// The number behind a letter of an answer.
fn number(answer: &str, letter: char) -> u64 {
    let token = answer.split(' ').find(|token| token.starts_with(letter));
    token.expect("the flag")[1..].parse().expect("a number")
}

#[test]
fn mg_shows_what_is_asked_for_in_the_order_asked() {
    talk(&[
        ("mg a\n", "EN\n"),
        ("mg a v k q\n", ""),
        (
            "mg a s v k O12 t\n",
            "EN\n".replace("EN", "EN ka O12").leak(),
        ),
        ("set a 7 0 3\nabc\n", "STORED\n"),
        ("mg a\n", "HD\n"),
        ("mg a v\n", "VA 3\nabc\n"),
        ("mg a h\n", "HD h1\n"),
        ("mg a s t f k Oxyz v\n", "VA 3 s3 t-1 f7 ka Oxyz\nabc\n"),
        ("mg a Oxyz k f t s\n", "HD Oxyz ka f7 t-1 s3\n"),
        ("mg a q\n", "HD\n"),
        ("mg a q v\n", "VA 3\nabc\n"),
        // Flags without a meaning here are nothing to speak of.
        ("mg a I x M J5 D2 F9 P L1\n", "HD\n"),
    ]);
}

#[test]
fn mg_tells_of_reads_before_it_is_one() {
    talk(&[
        ("set a 0 0 1\n1\n", "STORED\n"),
        ("mg a h l t u\n", "HD h0 l0 t-1\n"),
        ("mg a h\n", "HD h0\n"),
        ("mg a h\n", "HD h1\n"),
    ]);
}

#[test]
fn expiry_is_shown_and_set_in_the_order_of_the_flags() {
    talk(&[
        ("ms a 1 T100\nx\n", "HD\n"),
        ("mg a t T30 v\n", "VA 1 t100\nx\n"),
        ("mg a T90 t\n", "HD t90\n"),
        ("mg a t\n", "HD t90\n"),
        ("mg a T0 t\n", "HD t-1\n"),
        ("mg new N30 t T100\n", "HD t30 W\n"),
        ("mg new t\n", "HD t100 Z\n"),
        ("mg other T100 t N30\n", "HD t100 W\n"),
        ("mg other t\n", "HD t30 Z\n"),
        ("ma n N50 t T60\n", "HD t50\n"),
        ("ma n t T70\n", "HD t60\n"),
        ("ma n T0 t\n", "HD t-1\n"),
        ("mg a T-1 v\n", "VA 1\nx\n"),
        ("mg a v\n", "EN\n"),
    ]);
}

#[test]
fn a_miss_can_make_an_item_and_one_reader_its_owner() {
    talk(&[
        ("mg k v s N30\n", "VA 0 s0 W\n\n"),
        ("mg k v s N30\n", "VA 0 s0 Z\n\n"),
        ("mg k\n", "HD Z\n"),
        ("ms k 2\nok\n", "HD\n"),
        ("mg k v\n", "VA 2\nok\n"),
        // What is dead from the start is seen once by the one who made it.
        ("mg dead N-1 k\n", "HD kdead W\n"),
        ("mg dead\n", "EN\n"),
    ]);
}

#[test]
fn a_cas_can_be_given_and_asked_for() {
    let server = TestServer::start();
    let mut client = server.connect();
    converse(
        &mut client,
        &[
            ("ms a 1 E1000 c\nx\n", "HD c1000\n"),
            ("mg a c v\n", "VA 1 c1000\nx\n"),
            ("mg a C1000 v c\n", "HD c1000\n"),
            ("mg a C999 v\n", "VA 1\nx\n"),
            ("ms a 1 C999 E2000 c\ny\n", "EX c0\n"),
            ("ms a 1 C1000 E2000 c\ny\n", "HD c2000\n"),
            ("ms a 1 C2000 MR E2001 c\nz\n", "HD c2001\n"),
            ("ms a 1 C5 MA\n+\n", "EX\n"),
            ("ms a 1 C2001 MA E2002 s\n+\n", "HD s2\n"),
            ("ms b 1 C5\nx\n", "NF\n"),
            ("ms b 1 C5 MR\nx\n", "NF\n"),
            ("ms b 1 C5 MA\nx\n", "NS\n"),
            ("ms b 1 C5 ME E7 c\nx\n", "HD c7\n"),
            ("mg n N0 E55 c\n", "HD c55 W\n"),
            ("ma a C9\n", "EX\n"),
            ("ma n2 N0 J7 E70 c v\n", "VA 1 c70\n7\n"),
            ("ma n2 C71 v\n", "EX\n"),
            ("ma n2 C70 E72 c v\n", "VA 1 c72\n8\n"),
            ("md n2 C70\n", "EX\n"),
            ("md n2 C72\n", "HD\n"),
            ("md n2 C72\n", "NF\n"),
            ("ms z 1 E0\n1\n", "HD\n"),
        ],
    );
    client.send("mg z c\r\n");
    assert!(
        number(&client.line(), 'c') > 0,
        "0 is no id, the next is taken"
    );
}

#[test]
fn ms_has_its_modes() {
    talk(&[
        ("ms a 1 MR\nx\n", "NS\n"),
        ("ms a 1 MA\nx\n", "NS\n"),
        ("ms a 1 MP\nx\n", "NS\n"),
        ("ms a 1 MS F5\nx\n", "HD\n"),
        ("ms a 1 ME\ny\n", "NS\n"),
        ("ms a 1 MA s\n>\n", "HD s2\n"),
        ("ms a 1 MP s\n<\n", "HD s3\n"),
        ("mg a v f\n", "VA 3 f5\n<x>\n"),
        ("ms a 2 MR k s Oo\nyy\n", "HD ka s2 Oo\n"),
        ("ms b 1 MA N30 s\nx\n", "HD s1\n"),
        ("ms b 1 MA N90 s\ny\n", "HD s2\n"),
        ("mg b v t\n", "VA 2 t30\nxy\n"),
        ("ms c 1 MP N0\nx\n", "HD\n"),
        (
            "ms a 1 Mword\nx\n",
            "CLIENT_ERROR invalid mode for ms M token\n",
        ),
        (
            "ms a 1 M\nx\n",
            "CLIENT_ERROR invalid mode for ms M token\n",
        ),
        ("ms a 1 MSet\nx\n", "HD\n"),
        ("ms a 0\n\n", "HD\n"),
        ("mg a v\n", "VA 0\n\n"),
    ]);
}

#[test]
fn quiet_hides_what_went_well() {
    talk(&[
        ("ms a 1 q\nx\n", ""),
        ("ms a 1 q ME\nx\n", "NS\n"),
        ("ms a 1 q C1\nx\n", "EX\n"),
        ("ms b 1 q C1\nx\n", "NF\n"),
        ("mg b q\n", ""),
        ("mg a q k\n", "HD ka\n"),
        ("ms n 1 q\n1\n", ""),
        ("ma n q\n", ""),
        ("ma n q v\n", ""),
        ("ma none q\n", "NF\n"),
        (
            "ma a q\n",
            "CLIENT_ERROR cannot increment or decrement non-numeric value\n",
        ),
        ("md a q C1\n", "EX\n"),
        ("md a q\n", ""),
        ("md a q k Ox\n", "NF ka Ox\n"),
        ("mg a q z\n", "CLIENT_ERROR invalid flag\n"),
        (
            "ms a 1 q\nxy\n",
            "CLIENT_ERROR bad data chunk\nCLIENT_ERROR bad command line format\n",
        ),
    ]);
}

#[test]
fn invalidation_leaves_the_stale_value_and_one_winner() {
    talk(&[
        ("ms k 3 T300 E100\nold\n", "HD\n"),
        ("md k I T30 E200\n", "HD\n"),
        ("mg k v t c\n", "VA 3 t30 c200 X W\nold\n"),
        ("mg k v\n", "VA 3 Z X\nold\n"),
        ("mg k s\n", "HD s3 Z X\n"),
        // Marked anew, somebody else wins.
        ("md k I E201\n", "HD\n"),
        ("mg k\n", "HD X W\n"),
        ("mg k\n", "HD Z X\n"),
        ("md k C200 I\n", "EX\n"),
        ("ms k 3 C201 T100\nnew\n", "HD\n"),
        ("mg k v\n", "VA 3\nnew\n"),
        ("md none I\n", "NF\n"),
    ]);
}

#[test]
fn an_older_cas_may_store_a_stale_value() {
    talk(&[
        ("ms k 3 E100 T300\nold\n", "HD\n"),
        ("ms k 3 C50 I E101 T20\nnew\n", "HD\n"),
        // The expiry of the old one stays.
        ("mg k v t\n", "VA 3 t300 X W\nnew\n"),
        ("mg k v\n", "VA 3 Z X\nnew\n"),
        ("ms k 3 C999 I\nxxx\n", "EX\n"),
        ("ms k 3 C50\nxxx\n", "EX\n"),
        ("ms k 3 C0 I\nxxx\n", "EX\n"),
        ("ms k 4 C101\nlast\n", "HD\n"),
        ("mg k v\n", "VA 4\nlast\n"),
    ]);
}

#[test]
fn a_tombstone_keeps_the_item_and_drops_its_value() {
    talk(&[
        ("ms k 3 F7 E100 T300\nold\n", "HD\n"),
        ("md k x\n", "HD\n"),
        ("mg k v f t c s\n", "VA 0 f0 t-1 c100 s0\n\n"),
        ("md k x F9 T60 E101\n", "HD\n"),
        ("mg k v f t c\n", "VA 0 f9 t60 c101\n\n"),
        ("md k x I E102\n", "HD\n"),
        ("mg k v c\n", "VA 0 c102 X W\n\n"),
        ("md none x\n", "NF\n"),
    ]);
}

#[test]
fn recaching_is_won_once() {
    talk(&[
        ("ms k 1 T100\nx\n", "HD\n"),
        ("mg k v R30\n", "VA 1\nx\n"),
        ("mg k v R200\n", "VA 1 W\nx\n"),
        ("mg k v R200\n", "VA 1 Z\nx\n"),
        ("ms k 1 T0\nx\n", "HD\n"),
        // What lives for ever needs no recaching.
        ("mg k R200\n", "HD\n"),
        ("ms k 1 T100\nx\n", "HD\n"),
        // Before or after the touch makes the difference.
        ("mg k T300 R200\n", "HD\n"),
        ("ms k 1 T100\nx\n", "HD\n"),
        ("mg k R200 T300\n", "HD W\n"),
    ]);
}

#[test]
fn ma_counts() {
    talk(&[
        ("ma n\n", "NF\n"),
        ("ma n k Oo\n", "NF kn Oo\n"),
        ("ma n N0\n", "HD\n"),
        ("mg n v\n", "VA 1\n0\n"),
        ("ma n v\n", "VA 1\n1\n"),
        ("ma n v D10\n", "VA 2\n11\n"),
        ("ma n v MI D4\n", "VA 2\n15\n"),
        ("ma n v M+\n", "VA 2\n16\n"),
        ("ma n v MD D7\n", "VA 1\n9\n"),
        ("mg n v s\n", "VA 2 s2\n9 \n"),
        ("ma n v M- D100\n", "VA 1\n0\n"),
        ("ma n MDecr v\n", "VA 1\n0\n"),
        ("ma m N0 J13 v D5\n", "VA 2\n13\n"),
        ("ma m D18446744073709551615 v\n", "VA 2\n12\n"),
        ("ma m k t q\n", ""),
        ("ma n MX\n", "CLIENT_ERROR invalid mode for ma M token\n"),
        ("ma n M\n", "CLIENT_ERROR invalid mode for ma M token\n"),
        ("set w 0 0 4\nword\n", "STORED\n"),
        (
            "ma w v\n",
            "CLIENT_ERROR cannot increment or decrement non-numeric value\n",
        ),
    ]);
}

#[test]
fn keys_may_come_in_base64() {
    talk(&[
        ("ms YWI= 1 b k\nx\n", "HD kYWI= b\n"),
        ("get ab\n", "VALUE ab 0 1\nx\nEND\n"),
        ("mg ab k v\n", "VA 1 kYWI= b\nx\n"),
        ("mg YWI= b k\n", "HD kYWI= b\n"),
        ("mg YWI= k\n", "EN kYWI=\n"),
        ("set cd 0 0 1\ny\n", "STORED\n"),
        ("mg Y2Q= b k v\n", "VA 1 kcd\ny\n"),
        (
            "ma Y2Q= b\n",
            "CLIENT_ERROR cannot increment or decrement non-numeric value\n",
        ),
        ("ma bjE= b N0 k\n", "HD kbjE= b\n"),
        ("md bjE= b k\n", "HD kbjE= b\n"),
        ("md bjE= b k\n", "NF kbjE= b\n"),
        ("mg bjE= b k O1\n", "EN kbjE= b O1\n"),
        ("mg # b\n", "CLIENT_ERROR error decoding key\n"),
        ("mg YWI b\n", "CLIENT_ERROR error decoding key\n"),
        ("ms # 1 b\nx\n", "CLIENT_ERROR error decoding key\n"),
        ("ma # b\n", "CLIENT_ERROR invalid or duplicate flag\n"),
        ("me # b b\n", "CLIENT_ERROR bad command line format\n"),
        // A blank cannot be in a key otherwise.
        ("ms YSBi 1 b\nz\n", "HD\n"),
        ("mg YSBi b v k\n", "VA 1 kYSBi b\nz\n"),
    ]);
}

#[test]
fn me_describes() {
    talk(&[
        ("me a\n", "EN\n"),
        ("ms a 5 T100 E77\nvalue\n", "HD\n"),
        (
            "me a\n",
            "ME a exp=100 la=0 cas=77 fetch=no cls=1 size=65\n",
        ),
        ("mg a\n", "HD\n"),
        ("mg a\n", "HD\n"),
        (
            "me a\n",
            "ME a exp=100 la=0 cas=77 fetch=yes cls=1 size=65\n",
        ),
        ("ms YWI= 1 b E78\nx\n", "HD\n"),
        (
            "me YWI= b\n",
            "ME YWI= exp=-1 la=0 cas=78 fetch=no cls=1 size=62\n",
        ),
        ("me\n", "CLIENT_ERROR bad command line format\n"),
    ]);
}

#[test]
fn mn_says_so() {
    talk(&[("mn\n", "MN\n"), ("mn and more\n", "MN\n")]);
}

#[test]
fn what_is_wrong_is_told_in_memcacheds_order() {
    let long = "k".repeat(251);
    let opaque = |length| format!("O{}", "o".repeat(length));
    let many = (b'a'..=b's')
        .map(|letter| format!(" {}", char::from(letter)))
        .collect::<String>();
    let format = "CLIENT_ERROR bad command line format\n";
    let talk: Vec<(String, &str)> = vec![
        ("mg\n".into(), format),
        ("md\n".into(), format),
        ("ma\n".into(), format),
        ("ms\n".into(), format),
        ("ms a\n".into(), format),
        ("ms a x\n".into(), format),
        ("ms a -1\n".into(), format),
        ("ms a 2147483646\n".into(), format),
        (format!("mg {long}\n"), format),
        (format!("md {long}\n"), format),
        (format!("me {long}\n"), format),
        // These pass over the value that was announced.
        (format!("ms {long} 5\nmn   \n"), format),
        ("ms a 1 Fx\n1\n".into(), format),
        ("ms a 1 z\n1\n".into(), "CLIENT_ERROR invalid flag\n"),
        ("ms a 1 k k\n1\n".into(), "CLIENT_ERROR duplicate flag\n"),
        (
            "ms a 1 Tx\n1\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            format!("ms a 1 {}\n1\n", opaque(32)),
            "CLIENT_ERROR opaque token too long\n",
        ),
        // A word that can be no flag is told before all else.
        ("mg a !\n".into(), format),
        ("ma a !\n".into(), format),
        ("mg a z z !\n".into(), format),
        ("mg a z\n".into(), "CLIENT_ERROR invalid flag\n"),
        ("mg a v v\n".into(), "CLIENT_ERROR duplicate flag\n"),
        ("mg a v v z\n".into(), "CLIENT_ERROR duplicate flag\n"),
        ("mg a z v v\n".into(), "CLIENT_ERROR invalid flag\n"),
        (
            "mg a T\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a N1x\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a R2147483648\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a C-1\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a E\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a J\n".into(),
            "CLIENT_ERROR invalid numeric initial value\n",
        ),
        (
            "mg a Dx\n".into(),
            "CLIENT_ERROR invalid numeric delta value\n",
        ),
        ("mg a F4294967296\n".into(), format),
        // Of several the last one is told, but for F.
        (
            "mg a Tx Jx\n".into(),
            "CLIENT_ERROR invalid numeric initial value\n",
        ),
        (
            "mg a Jx Tx\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        (
            "mg a Tx Fx\n".into(),
            "CLIENT_ERROR bad token in command line format\n",
        ),
        ("mg a Tx z\n".into(), "CLIENT_ERROR invalid flag\n"),
        (
            "ma a Tx\n".into(),
            "CLIENT_ERROR invalid or duplicate flag\n",
        ),
        (
            "ma a v v\n".into(),
            "CLIENT_ERROR invalid or duplicate flag\n",
        ),
        (
            "ma a z\n".into(),
            "CLIENT_ERROR invalid or duplicate flag\n",
        ),
        (
            format!("mg a {}\n", opaque(31)),
            "EN Oooooooooooooooooooooooooooooooo\n",
        ),
        (
            format!("mg a {}\n", opaque(32)),
            "CLIENT_ERROR opaque token too long\n",
        ),
        (
            format!("ma a {}\n", opaque(32)),
            "CLIENT_ERROR opaque token too long\n",
        ),
        (
            format!("mg a{many}\n"),
            "CLIENT_ERROR options flags are too long\n",
        ),
        (
            format!("ma a{many}\n"),
            "CLIENT_ERROR invalid or duplicate flag\n",
        ),
        ("mx a\n".into(), "ERROR\n"),
        ("mg  a   v  \n".into(), "EN\n"),
    ];
    let talk: Vec<(&str, &str)> = talk
        .iter()
        .map(|(asked, said)| (asked.as_str(), *said))
        .collect();
    let server = TestServer::start();
    converse(&mut server.connect(), &talk);
}

#[test]
fn what_finds_no_room_takes_the_old_value_with_it() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(2 << 20);
    for mode in ["", " MS", " ME", " MR", " MA"] {
        client.ask("ms a 1\r\nx\r\n", "HD\r\n");
        let request = format!("ms a {}{mode}\r\n{value}\r\nmg a v\r\n", value.len());
        client.ask(request, "SERVER_ERROR object too large for cache\r\nEN\r\n");
    }
}

#[test]
fn long_values_come_whole_and_in_pieces() {
    let server = TestServer::start();
    let mut client = server.connect();
    for length in [4096, 4097, 20_000, 1_000_000] {
        let value: String = (0..length)
            .map(|n| char::from(b'a' + (n % 19) as u8))
            .collect();
        client.ask(
            format!("ms big {length} s\r\n{value}\r\n"),
            format!("HD s{length}\r\n"),
        );
        client.ask(
            "mg big s v k\r\n",
            format!("VA {length} s{length} kbig\r\n{value}\r\n"),
        );
    }
}

#[test]
fn meta_commands_are_counted() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send("ms n 1\r\n1\r\nmg n v\r\nmg none\r\nma n\r\nmd n\r\nmn\r\nme n\r\nms t 1 T9\r\n1\r\nmg t T8\r\n");
    for expected in ["HD", "VA 1", "1", "EN", "HD", "HD", "MN", "EN", "HD", "HD"] {
        assert_eq!(client.line(), expected);
    }
    for (name, value) in [
        // memcached counts no other than me.
        ("cmd_meta", "1"),
        ("cmd_get", "2"),
        ("get_hits", "1"),
        ("get_misses", "1"),
        ("cmd_set", "2"),
        ("cmd_touch", "1"),
        ("touch_hits", "1"),
        ("incr_hits", "1"),
        ("delete_hits", "1"),
    ] {
        assert_eq!(client.stat(name), value, "{name}");
    }
}
