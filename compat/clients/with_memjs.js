// Every command of memjs, with or without a password.
"use strict";
const memjs = require("memjs");
const [host, port, username, password] = process.argv.slice(2);
let count = 0, bad = 0;

function ok(name, good, came) {
  count++;
  if (!good) bad++;
  console.log(`${good ? "ok" : "not ok"} ${count} - ${name}${good ? "" : ": " + String(JSON.stringify(came)).slice(0, 300)}`);
}

async function same(name, call, wanted) {
  let came;
  try {
    came = await call();
  } catch (error) {
    came = String(error);
  }
  ok(name, JSON.stringify(came) === JSON.stringify(wanted), came);
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const text = async (promise) => { const { value } = await promise; return value === null ? null : value.toString("latin1"); };

async function gone(name, call) {
  let came = await call();
  for (let i = 0; i < 40 && came !== null; i++) { await wait(100); came = await call(); }
  ok(name, came === null, came);
}

function client(options) {
  return memjs.Client.create(`${host}:${port}`, { retries: 1, timeout: 5, conntimeout: 5, username, password, logger: { log() {} }, ...options });
}

async function storing(mc, n) {
  await same(`${n} flush`, async () => Object.values(await mc.flush()).length, 1);
  await same(`${n} get absent`, () => text(mc.get("absent")), null);
  await same(`${n} set`, () => mc.set("a", "text", { expires: 100 }), true);
  await same(`${n} get`, () => text(mc.get("a")), "text");
  await same(`${n} set bytes`, async () => [await mc.set("b", Buffer.from([0, 13, 10, 255])), await text(mc.get("b"))], [true, "\x00\r\n\xff"]);
  await same(`${n} set empty`, async () => [await mc.set("e", ""), await text(mc.get("e"))], [true, ""]);
  await same(`${n} add existing`, () => mc.add("a", "2", {}), false);
  await same(`${n} add`, () => mc.add("c", "3", {}), true);
  await same(`${n} replace`, () => mc.replace("c", "4", {}), true);
  await same(`${n} replace absent`, () => mc.replace("absent", "4", {}), false);
  await same(`${n} append`, () => mc.append("c", "5"), true);
  await same(`${n} prepend`, () => mc.prepend("c", "3"), true);
  await same(`${n} append absent`, () => mc.append("absent", "3"), "Error: MemJS APPEND: Item not stored");
  await same(`${n} prepend absent`, async () => String(await mc.prepend("absent", "3").catch((error) => error)).endsWith("Item not stored"), true);
  // memjs sends an append for a prepend.
  await same(`${n} get what was joined`, async () => ["345", "453"].includes(await text(mc.get("c"))), true);
  await same(`${n} increment creates`, async () => (await mc.increment("n", 1, { initial: 10, expires: 100 })).value, 10);
  await same(`${n} increment`, async () => (await mc.increment("n", 32, {})).value, 42);
  await same(`${n} decrement`, async () => (await mc.decrement("n", 2, {})).value, 40);
  await same(`${n} decrement below zero`, async () => (await mc.decrement("n", 100, {})).value, 0);
  await same(`${n} touch`, () => mc.touch("a", 100), true);
  await same(`${n} touch absent`, () => mc.touch("absent", 100), false);
  await same(`${n} delete`, () => mc.delete("a"), true);
  await same(`${n} delete absent`, () => mc.delete("a"), false);
  await same(`${n} set with one second`, () => mc.set("short", "s", { expires: 1 }), true);
  await gone(`${n} it expires`, () => text(mc.get("short")));
  await same(`${n} large value`, async () => [await mc.set("big", "x".repeat(900000)), (await text(mc.get("big"))).length], [true, 900000]);
  await same(`${n} longest key`, async () => [await mc.set("k".repeat(250), "v"), await text(mc.get("k".repeat(250)))], [true, "v"]);
  const keys = Array.from({ length: 200 }, (_, number) => `many${number}`);
  await same(`${n} 200 at once`, async () => (await Promise.all(keys.map((key) => mc.set(key, key)))).every((good) => good), true);
  await same(`${n} get 200 at once`, async () => (await Promise.all(keys.map((key) => text(mc.get(key))))).join(), keys.join());
  const stats = (call) => new Promise((done, fail) => call((error, _, found) => (error ? fail(error) : done(found))));
  await same(`${n} stats`, async () => Number((await stats((done) => mc.stats(done))).curr_items) > 0, true);
  await same(`${n} statsWithKey`, async () => "maxconns" in (await stats((done) => mc.statsWithKey("settings", done))), true);
  await same(`${n} resetStats`, async () => { await stats((done) => mc.resetStats(done)); return true; }, true);
  if (mc.versionAll) await same(`${n} versionAll`, async () => Object.values((await mc.versionAll()).values)[0].slice(0, 4), "1.6.");
  if (mc.version) await same(`${n} version`, async () => (await text(mc.version())).slice(0, 4), "1.6.");
  mc.quit();
}

(async () => {
  await storing(client({}), "memjs");
  if (username) {
    const wrong = client({ password: "wrong" });
    let came;
    try { came = await wrong.set("a", "1", {}); } catch (error) { came = String(error); }
    ok("wrong password", came !== true, came);
    wrong.close();
  }
  console.log(`1..${count}`);
  process.exit(bad ? 1 : 0);
})().catch((error) => {
  ok("no exception", false, String(error.stack));
  process.exit(1);
});
