# Every command of Cache::Memcached and Cache::Memcached::Fast.
use strict;
use warnings;
use Cache::Memcached;
use Cache::Memcached::Fast;
use Test::More;

my $server = "$ARGV[0]:$ARGV[1]";

sub gone {
    my ($name, $get) = @_;
    my $came;
    for (1 .. 40) { $came = $get->(); last unless defined $came; select undef, undef, undef, 0.1 }
    ok !defined $came, $name;
}

# Both answer with 1, 0 or undef in ways of their own.
sub yes { my ($came, $name) = @_; ok $came, $name }
sub no_ { my ($came, $name) = @_; ok !$came, $name }

sub storing {
    my ($mc, $n, $fast) = @_;
    yes $mc->flush_all, "$n flush_all";
    is $mc->get('absent'), undef, "$n get absent";
    yes $mc->set('a', 'text'), "$n set";
    is $mc->get('a'), 'text', "$n get";
    my $raw = "\0\r\n\xffEND\r\n";
    yes $mc->set('b', $raw), "$n set bytes";
    is $mc->get('b'), $raw, "$n get bytes";
    yes $mc->set('e', ''), "$n set empty";
    is $mc->get('e'), '', "$n get empty";
    yes $mc->set('s', { list => [1, 2, undef] }), "$n set a structure";
    is_deeply $mc->get('s'), { list => [1, 2, undef] }, "$n get a structure";
    no_ $mc->add('a', '2'), "$n add existing";
    yes $mc->add('c', '3'), "$n add";
    yes $mc->replace('c', '4'), "$n replace";
    no_ $mc->replace('absent', '4'), "$n replace absent";
    yes $mc->append('c', '5'), "$n append";
    yes $mc->prepend('c', '3'), "$n prepend";
    no_ $mc->append('absent', '5'), "$n append absent";
    is $mc->get('c'), '345', "$n get what was joined";
    is_deeply $mc->get_multi('a', 'c', 'absent'), { a => 'text', c => '345' }, "$n get_multi";
    $mc->set('n', 1);
    is $mc->incr('n'), 2, "$n incr";
    is $mc->incr('n', 40), 42, "$n incr by";
    is $mc->decr('n', 2), 40, "$n decr";
    is 0 + $mc->decr('n', 100), 0, "$n decr below zero";
    no_ $mc->incr('absent'), "$n incr absent";
    yes $mc->delete('a'), "$n delete";
    no_ $mc->delete('a'), "$n delete absent";
    yes $mc->set('short', 's', 1), "$n set with one second";
    gone "$n it expires", sub { $mc->get('short') };
    my $big = 'x' x 900_000;
    yes $mc->set('big', $big), "$n large value";
    ok $mc->get('big') eq $big, "$n get large value";
    yes $mc->set('k' x 200, 'v'), "$n long key";
    is $mc->get('k' x 200), 'v', "$n get long key";
    my %many = map { ("many$_" => $_) } 1 .. 300;
    yes $mc->set($_, $many{$_}), "$n $_" for 'many1';
    $mc->set($_, $many{$_}) for keys %many;
    is_deeply $mc->get_multi(keys %many), \%many, "$n 300 values";
    if ($fast) {
        my $got = $mc->gets('c');
        is $got->[1], '345', "$n gets";
        yes $mc->cas('c', $got->[0], 'new'), "$n cas";
        no_ $mc->cas('c', $got->[0], 'newer'), "$n cas again";
        no_ $mc->cas('absent', $got->[0], 'newer'), "$n cas absent";
        is $mc->gets_multi('c')->{c}[1], 'new', "$n gets_multi";
        my @set = $mc->set_multi(['m1', 1], ['m2', 2]);
        is_deeply \@set, [1, 1], "$n set_multi";
        is scalar(grep { $_ } $mc->add_multi(['m1', 1], ['m3', 3])), 1, "$n add_multi";
        is scalar(grep { $_ } $mc->replace_multi(['m1', 1], ['absent', 3])), 1, "$n replace_multi";
        is scalar(grep { $_ } $mc->append_multi(['m1', 1], ['absent', 3])), 1, "$n append_multi";
        is_deeply [$mc->incr_multi(['m1', 2], 'm2')], [13, 3], "$n incr_multi";
        is_deeply [$mc->decr_multi(['m1', 2], 'm2')], [11, 2], "$n decr_multi";
        yes $mc->touch('c', 100), "$n touch";
        no_ $mc->touch('absent', 100), "$n touch absent";
        is $mc->gat(100, 'c'), 'new', "$n gat";
        is $mc->gats(100, 'c')->[1], 'new', "$n gats";
        is scalar(grep { $_ } $mc->delete_multi('m1', 'absent')), 1, "$n delete_multi";
        like join(' ', values %{ $mc->server_versions }), qr/^1\.6\./, "$n server_versions";
        $mc->set('silent', 1);    # without a reply
        $mc->nowait_push;
        is $mc->get('silent'), 1, "$n nowait_push";
        $mc->flush_all(1);
        gone "$n flush_all with a delay", sub { $mc->get('many1') };
    } else {
        my $stats = $mc->stats(['misc', 'items', 'slabs', 'sizes', 'malloc', 'self', 'maps']);
        ok $stats->{hosts}{$server}{misc}{curr_items} > 0, "$n stats";
        ok $stats->{hosts}{$server}{items}, "$n stats items";
        ok $stats->{hosts}{$server}{slabs}, "$n stats slabs";
        $mc->stats_reset;
        ok 1, "$n stats_reset";
        yes $mc->flush_all, "$n flush_all again";
        gone "$n it is flushed", sub { $mc->get('many1') };
    }
    $mc->disconnect_all;
    yes $mc->set('a', 1), "$n after disconnect_all";
}

storing(Cache::Memcached->new({ servers => [$server] }), 'plain', 0);
storing(Cache::Memcached->new({ servers => [$server], namespace => 'ns:', compress_threshold => 10_000 }), 'namespace', 0);
storing(Cache::Memcached::Fast->new({ servers => [$server], nowait => 0 }), 'fast', 1);
storing(Cache::Memcached::Fast->new({ servers => [$server], nowait => 1, namespace => 'f:', compress_threshold => 10_000 }), 'fast nowait', 1);
done_testing;
