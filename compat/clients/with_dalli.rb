# Every command of dalli, in binary and in meta, with or without a password.
require "dalli"

Dalli.logger.level = Logger::FATAL
HOST, PORT, USER, PASSWORD = ARGV
QUIET = Dalli::Client.method_defined?(:quiet) ? :quiet : :multi
$count = 0
$bad = 0

def ok(name, good, came = nil)
  $count += 1
  $bad += 1 unless good
  puts "#{good ? "ok" : "not ok"} #{$count} - #{name}#{good ? "" : ": #{came.inspect[0, 300]}"}"
end

def same(name, wanted)
  came = begin
    yield
  rescue StandardError => error
    error.class
  end
  ok(name, came == wanted, came)
end

def gone(name)
  40.times do
    break if yield.nil?
    sleep 0.1
  end
  ok(name, yield.nil?)
end

def storing(dc, name, protocol)
  same("#{name} flush", [true]) { dc.flush }
  same("#{name} get absent", nil) { dc.get("absent") }
  ok("#{name} set", dc.set("a", "text"))
  same("#{name} get", "text") { dc.get("a") }
  { "bytes" => "\x00\r\n\xff".b, "number" => 12, "array" => [1, { "a" => nil }], "empty" => "" }.each do |label, value|
    same("#{name} set #{label}", value) { dc.set("v", value); dc.get("v") }
  end
  same("#{name} nil is stored", nil) { dc.set("v", nil); dc.get("v") }
  same("#{name} set another", "set") { dc.set("b", "set"); dc.get("b") }
  same("#{name} add existing", false) { dc.add("a", "2") }
  ok("#{name} add", dc.add("c", "3", 100, raw: true))
  ok("#{name} replace", dc.replace("c", "4", 100, raw: true))
  same("#{name} replace absent", true) { [0, false, nil].include?(dc.replace("absent", "4")) }
  ok("#{name} append", dc.append("c", "5"))
  ok("#{name} prepend", dc.prepend("c", "3"))
  same("#{name} append absent", false) { dc.append("absent", "3") ? true : false }
  same("#{name} get what was joined", "345") { dc.get("c", raw: true) }
  same("#{name} get_multi", { "a" => "text", "b" => "set" }) { dc.get_multi("a", "b", "absent") }
  same("#{name} get_multi with a block", ["a"]) { keys = []; dc.get_multi("a", "absent") { |key, _| keys << key }; keys }
  same("#{name} fetch", "made") { dc.fetch("fetched", 100) { "made" } }
  same("#{name} fetch again", "made") { dc.fetch("fetched", 100) { "other" } }
  ok("#{name} set raw number", dc.set("n", "1", 0, raw: true))
  same("#{name} incr", 42) { dc.incr("n", 41) }
  same("#{name} decr", 40) { dc.decr("n", 2) }
  same("#{name} decr below zero", 0) { dc.decr("n", 100) }
  same("#{name} incr absent", nil) { dc.incr("absent2", 1) }
  same("#{name} incr with a default", 10) { dc.incr("n2", 1, 100, 10) }
  same("#{name} decr with a default", 10) { dc.decr("n3", 1, 100, 10) }
  ok("#{name} touch", dc.touch("a", 100))
  same("#{name} touch absent", nil) { dc.touch("absent", 100) }
  same("#{name} gat", "text") { dc.gat("a", 200) }
  same("#{name} gat absent", nil) { dc.gat("absent", 200) }
  same("#{name} cas", "text!") { dc.cas("a") { |value| value + "!" }; dc.get("a") }
  same("#{name} cas absent", nil) { dc.cas("absent") { |value| value } }
  same("#{name} cas! absent", "first") { dc.delete("new"); dc.cas!("new") { |_| "first" }; dc.get("new") }
  value, unique = dc.get_cas("a")
  same("#{name} get_cas", ["text!", true]) { [value, unique.positive?] }
  ok("#{name} set_cas", dc.set_cas("a", "next", unique))
  same("#{name} set_cas again", false) { dc.set_cas("a", "other", unique) ? true : false }
  same("#{name} get_multi_cas", "next") { dc.get_multi_cas("a")["a"][0] }
  unique = dc.get_cas("a")[1]
  same("#{name} replace_cas wrong", false) { dc.replace_cas("a", "x", unique + 1) ? true : false }
  ok("#{name} replace_cas", dc.replace_cas("a", "y", unique))
  same("#{name} delete_cas wrong", false) { dc.delete_cas("a", unique) ? true : false }
  ok("#{name} delete_cas", dc.delete_cas("a", dc.get_cas("a")[1]))
  ok("#{name} delete", dc.delete("b"))
  same("#{name} delete absent", false) { dc.delete("b") ? true : false }
  same("#{name} quiet", { "q1" => "1", "q2" => "2" }) do
    dc.public_send(QUIET) { dc.set("q1", "1"); dc.set("q2", "2"); dc.set("q3", "3"); dc.delete("q3"); dc.add("q1", "9"); dc.replace("absent", "9") }
    dc.get_multi("q1", "q2", "q3")
  end
  ok("#{name} set with one second", dc.set("short", "s", 1))
  gone("#{name} it expires") { dc.get("short") }
  same("#{name} large value", 900_000) { dc.set("big", "x" * 900_000); dc.get("big").size }
  same("#{name} too large a value", Dalli::ValueOverMaxSize) { dc.set("big", Random.bytes(1_100_000), 0, raw: true) }
  same("#{name} compressed", 500_000) { dc.set("z", "z" * 500_000, 0, compress: true); dc.get("z").size }
  same("#{name} long key", "v") { dc.set("k" * 250, "v"); dc.get("k" * 250) }
  same("#{name} longer key", "v") { dc.set("k" * 300, "v"); dc.get("k" * 300) }
  same("#{name} key with blanks", "v") { dc.set("a b\tc", "v"); dc.get("a b\tc") }
  many = (1..300).to_h { |number| ["many#{number}", number.to_s] }
  same("#{name} 300 values", many) { dc.public_send(QUIET) { many.each { |key, item| dc.set(key, item) } }; dc.get_multi(*many.keys) }
  ok("#{name} stats", dc.stats.values.first["curr_items"].to_i.positive?)
  ok("#{name} stats items", dc.stats(:items).values.first.keys.any? { |key| key.include?("number") })
  ok("#{name} stats slabs", dc.stats(:slabs).values.first.key?("active_slabs"))
  ok("#{name} stats settings", dc.stats(:settings).values.first.key?("maxconns"))
  ok("#{name} reset_stats", dc.reset_stats)
  ok("#{name} version", dc.version.values.first.start_with?("1.6."))
  ok("#{name} alive!", dc.alive!)
  ok("#{name} flush with a delay", dc.flush(1))
  gone("#{name} it is flushed") { dc.get("many1") }
  dc.close
  ok("#{name} after close", dc.set("a", "1"))
end

server = "#{HOST}:#{PORT}"
begin
  if USER
    storing(Dalli::Client.new(server, username: USER, password: PASSWORD), "binary", :binary)
    same("wrong password", Dalli::DalliError) { Dalli::Client.new(server, username: USER, password: "wrong").get("a") }
    same("without a password", Dalli::DalliError) { Dalli::Client.new(server).get("a") }
  else
    storing(Dalli::Client.new(server), "binary", :binary)
    storing(Dalli::Client.new(server, protocol: :meta), "meta", :meta) if Gem::Version.new(Dalli::VERSION) >= Gem::Version.new("3.2.0")
    storing(Dalli::Client.new(server, namespace: "ns", compress: true), "namespace", :binary)
  end
rescue StandardError => error
  ok("no exception", false, "#{error.class} #{error.message} #{error.backtrace.first(2)}")
end
puts "1..#{$count}"
exit($bad.zero? ? 0 : 1)
