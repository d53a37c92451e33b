<?php
// Every command of php-memcached, in text and in binary, or with a password.
[, $host, $port] = $argv;
$user = $argv[3] ?? null;
$password = $argv[4] ?? null;
$count = $bad = 0;

function ok($name, $good, $came = null) {
    global $count, $bad;
    $count++;
    if (!$good) $bad++;
    echo $good ? "ok" : "not ok", " $count - $name", $good ? "" : ": " . substr(str_replace("\n", " ", var_export($came, true)), 0, 300), "\n";
}

function same($name, $came, $wanted) {
    ok($name, $came === $wanted, $came);
}

// A call's result together with the code it leaves behind.
function gives($name, $mc, $came, $wanted, $code = Memcached::RES_SUCCESS) {
    ok($name, $came === $wanted && $mc->getResultCode() === $code, [$came, $mc->getResultCode(), $mc->getResultMessage()]);
}

function gone($name, $function) {
    for ($try = 0; $try < 40 && $function() !== false; $try++) usleep(100000);
    ok($name, $function() === false);
}

function client($binary, $options = []) {
    global $host, $port, $user, $password;
    $mc = new Memcached();
    $mc->setOptions($options + [Memcached::OPT_BINARY_PROTOCOL => $binary, Memcached::OPT_TCP_NODELAY => true]);
    if ($user !== null) $mc->setSaslAuthData($user, $password);
    $mc->addServer($host, (int)$port);
    return $mc;
}

function storing($mc, $n, $binary, $prefix = "") {
    same("$n flush", $mc->flush(), true);
    gives("$n get absent", $mc, $mc->get("absent"), false, Memcached::RES_NOTFOUND);
    gives("$n set", $mc, $mc->set("a", "text"), true);
    gives("$n get", $mc, $mc->get("a"), "text");
    foreach (["bytes" => "\x00\r\n\xff", "number" => 12, "float" => 2.5, "true" => true, "array" => [1, ["a" => null]], "empty" => ""] as $label => $value) {
        $mc->set("v", $value);
        same("$n set $label", $mc->get("v"), $value);
    }
    gives("$n add existing", $mc, $mc->add("a", "2"), false, $binary ? Memcached::RES_DATA_EXISTS : Memcached::RES_NOTSTORED);
    $mc->setOption(Memcached::OPT_COMPRESSION, false);
    gives("$n add", $mc, $mc->add("c", "3"), true);
    gives("$n replace", $mc, $mc->replace("c", "4"), true);
    gives("$n replace absent", $mc, $mc->replace("absent", "4"), false, $binary ? Memcached::RES_NOTFOUND : Memcached::RES_NOTSTORED);
    gives("$n append", $mc, $mc->append("c", "5"), true);
    gives("$n prepend", $mc, $mc->prepend("c", "3"), true);
    gives("$n append absent", $mc, $mc->append("absent", "5"), false, Memcached::RES_NOTSTORED);
    same("$n get what was joined", $mc->get("c"), "345");
    $mc->setOption(Memcached::OPT_COMPRESSION, true);
    same("$n getMulti", $mc->getMulti(["a", "c", "absent"]), ["a" => "text", "c" => "345"]);
    same("$n getMulti in order", $mc->getMulti(["absent", "c"], Memcached::GET_PRESERVE_ORDER), ["absent" => null, "c" => "345"]);
    same("$n setMulti", $mc->setMulti(["m1" => 1, "m2" => "two"], 100), true);
    same("$n getDelayed", $mc->getDelayed(["m1", "m2"], true), true);
    $fetched = $mc->fetch();
    same("$n fetch", [in_array($fetched["key"], ["m1", "m2"]), $fetched["cas"] > 0], [true, true]);
    same("$n fetchAll", count($mc->fetchAll()), 1);
    $mc->set("n", 1);
    gives("$n increment", $mc, $mc->increment("n"), 2);
    gives("$n increment by", $mc, $mc->increment("n", 40), 42);
    gives("$n decrement", $mc, $mc->decrement("n", 2), 40);
    gives("$n decrement below zero", $mc, $mc->decrement("n", 100), 0);
    gives("$n increment absent", $mc, $mc->increment("absent"), false, Memcached::RES_NOTFOUND);
    ok("$n increment a word", $mc->increment("a") === false, $mc->getResultCode());
    if ($binary) {
        gives("$n increment with a default", $mc, $mc->increment("n2", 1, 10, 100), 10);
        gives("$n decrement with a default", $mc, $mc->decrement("n3", 1, 10, 100), 10);
    }
    $got = $mc->get("a", null, Memcached::GET_EXTENDED);
    same("$n get extended", [$got["value"], $got["flags"], $got["cas"] > 0], ["text", 0, true]);
    gives("$n cas", $mc, $mc->cas($got["cas"], "a", "new"), true);
    gives("$n cas again", $mc, $mc->cas($got["cas"], "a", "newer"), false, Memcached::RES_DATA_EXISTS);
    gives("$n cas absent", $mc, $mc->cas($got["cas"], "absent", "newer"), false, Memcached::RES_NOTFOUND);
    same("$n user flags", [$mc->setOption(Memcached::OPT_USER_FLAGS, 7), $mc->set("f", "v"), $mc->get("f", null, Memcached::GET_EXTENDED)["flags"]], [true, true, 7]);
    $mc->setOption(Memcached::OPT_USER_FLAGS, -1);
    gives("$n touch", $mc, $mc->touch("a", 100), true);
    gives("$n touch absent", $mc, $mc->touch("absent", 100), false, Memcached::RES_NOTFOUND);
    same("$n read through", $mc->get("through", function ($mc, $key, &$value) { $value = "made"; return true; }), "made");
    same("$n read through again", $mc->get("through"), "made");
    gives("$n delete", $mc, $mc->delete("a"), true);
    gives("$n delete absent", $mc, $mc->delete("a"), false, Memcached::RES_NOTFOUND);
    same("$n deleteMulti", $mc->deleteMulti(["m1", "absent"]), ["m1" => true, "absent" => Memcached::RES_NOTFOUND]);
    same("$n setByKey", [$mc->setByKey("s", "bk", "v"), $mc->getByKey("s", "bk"), $mc->getMultiByKey("s", ["bk"])], [true, "v", ["bk" => "v"]]);
    same("$n addByKey", [$mc->addByKey("s", "bk", "w"), $mc->replaceByKey("s", "bk", "w"), $mc->touchByKey("s", "bk", 50), $mc->deleteByKey("s", "bk")], [false, true, true, true]);
    gives("$n set with one second", $mc, $mc->set("short", "s", 1), true);
    gone("$n it expires", fn() => $mc->get("short"));
    same("$n large value", [$mc->set("z", str_repeat("z", 3000000)), strlen($mc->get("z"))], [true, 3000000]);
    $mc->setOption(Memcached::OPT_COMPRESSION, false);
    same("$n larger value", [$mc->set("big", str_repeat("x", 900000)), strlen($mc->get("big"))], [true, 900000]);
    gives("$n too large a value", $mc, $mc->set("big", str_repeat("x", 1100000)), false, Memcached::RES_E2BIG);
    $mc->setOption(Memcached::OPT_COMPRESSION, true);
    $long = str_repeat("k", 250 - strlen($prefix));
    same("$n longest key", [$mc->set($long, "v"), $mc->get($long)], [true, "v"]);
    $many = [];
    for ($i = 0; $i < 300; $i++) $many["many$i"] = (string)$i;
    same("$n 300 values", [$mc->setMulti($many), $mc->getMulti(array_keys($many))], [true, $many]);
    $stats = $mc->getStats();
    ok("$n getStats", current($stats)["curr_items"] > 0, $stats);
    ok("$n getStats items", count(current($mc->getStats("items"))) > 5);
    ok("$n getStats slabs", array_key_exists("active_slabs", current($mc->getStats("slabs"))));
    ok("$n getVersion", str_starts_with(current($mc->getVersion()), "1.6."));
    if (!$binary && !$prefix) ok("$n getAllKeys", is_array($mc->getAllKeys()), $mc->getResultMessage());
    same("$n flush with a delay", $mc->flush(1), true);
    gone("$n it is flushed", fn() => $mc->get("many1"));
    usleep(1100000); // what is stored in the second of a flush goes with it
    same("$n quit", $mc->quit(), true);
    same("$n after quit", $mc->set("a", "1"), true);
}

if ($user !== null) {
    storing(client(true), "binary", true);
    $password = "wrong";
    gives("wrong password", $mc = client(true), $mc->set("a", 1), false, $mc->getResultCode());
    ok("wrong password is told", $mc->getResultCode() !== Memcached::RES_SUCCESS, $mc->getResultMessage());
} else {
    storing(client(false), "text", false);
    storing(client(true), "binary", true);
    storing(client(false, [Memcached::OPT_PREFIX_KEY => "pre:"]), "prefixed", false, "pre:");
    $quiet = client(false, [Memcached::OPT_BUFFER_WRITES => true]);
    $quiet->set("buffered", "v");
    same("buffered writes", [$quiet->flushBuffers(), $quiet->get("buffered")], [true, "v"]);
    $noreply = client(false, [Memcached::OPT_NOREPLY => true]);
    $noreply->set("silent", "v");
    same("noreply", $noreply->get("silent"), "v");
}
echo "1..$count\n";
exit($bad ? 1 : 0);
