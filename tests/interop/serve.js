// Serves Basic.echo, Basic.same and others in JSON; written from docs/protocol.md. node serve.js
// Prints its port. A call of Basic.leave says GOAWAY, one of Basic.break sends half a frame and ends.
"use strict";
const net = require("node:net");

const [REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY] = [1, 2, 3, 4, 5, 6, 7];
const [RAW, NAMED, ONE_WAY, NOT_EXECUTED] = [1, 2, 4, 8];
const MAGIC = 0x52504350;
const [MOST_LINE, MOST_HEADER, MOST_BODY] = [4096, 16384, 4194304];
// What a client may send: the flags of each type, and whether it has a header and a body.
const TYPES = new Map([
  [REQUEST, [RAW | NAMED | ONE_WAY, true, true]],
  [CANCEL, [0, false, false]],
  [PING, [0, false, false]],
  [PONG, [0, false, false]],
  [GOAWAY, [0, false, true]],
]);

class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}
const malformed = (message) => new Refusal("invalid_argument", message);

function frame(type, flags, id, body) {
  const prefix = Buffer.alloc(16);
  prefix.writeUInt8(type, 0);
  prefix.writeUInt8(flags, 1);
  prefix.writeUInt32BE(body.length, 4);
  prefix.writeBigUInt64BE(id, 8);
  return Buffer.concat([prefix, body]);
}

const json = (value) => Buffer.from(JSON.stringify(value));
const decode = (bytes) => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
const isMap = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

// The option line, of which JSON.parse does not see all: numbers as written, keys that occur twice,
// and lone surrogates.

function checkLine(bytes) {
  let value;
  try {
    value = decode(bytes);
  } catch (error) {
    throw malformed(`not JSON: ${error.message}`);
  }
  if (!isMap(value)) throw malformed("the line must be an object");
  const text = bytes.toString();
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g);
  const keys = [];
  tokens.forEach((token, at) => {
    if (token === "{") keys.push(new Set());
    else if (token === "}") keys.pop();
    else if (token[0] === '"') {
      const word = JSON.parse(token);
      if (!word.isWellFormed()) throw malformed("a lone surrogate");
      if (tokens[at + 1] !== ":") return;
      if (keys.at(-1).has(word)) throw malformed(`${word} occurs twice`);
      keys.at(-1).add(word);
    } else if (/^-?[0-9]+[.eE]/.test(token)) throw malformed(`${token} is no whole number`);
  });
  return value;
}

function whole(value, name, least, most) {
  if (!Number.isInteger(value) || value < least || value > most)
    throw malformed(`${name} must be from ${least} to ${most}`);
}

function checkOptions(said) {
  if (said.magic !== MAGIC) throw malformed(`magic must be ${MAGIC}`);
  if (!Number.isInteger(said.version)) throw malformed("version must be a whole number");
  if (said.version !== 1) throw new Refusal("unimplemented", "this server speaks version 1");
  if (typeof said.codec !== "string") throw malformed("codec must be a string");
  const { token = null, limits = {}, timeouts = {}, features = [] } = said;
  if (token !== null && (typeof token !== "string" || [...token].length > 2048))
    throw malformed("token must be a string of at most 2048 characters");
  if (!isMap(limits) || !isMap(timeouts)) throw malformed("limits and timeouts must be objects");
  if ("header" in limits) whole(limits.header, "limits.header", 256, 65535);
  if ("body" in limits) whole(limits.body, "limits.body", 8192, 2 ** 32 - 1);
  if (timeouts.ping != null) whole(timeouts.ping, "timeouts.ping", 0, 2 ** 40);
  const isName = (name) => typeof name === "string" && name.length >= 1 && [...name].length <= 64;
  if (!Array.isArray(features) || features.length > 32 || !features.every(isName))
    throw malformed("features must be at most 32 strings of 1 to 64 characters");
  if (said.codec !== "json") throw new Refusal("unimplemented", "this server speaks json");
}

function checkHeader(header) {
  if (!Array.isArray(header) || header.length < 1 || header.length > 3)
    throw malformed("a header has 1 to 3 fields");
  const [method, timeout = null, metadata = null] = header;
  if (typeof method !== "string") throw malformed("the method must be a string");
  if (timeout !== null && typeof timeout !== "number")
    throw malformed("the timeout must be a number");
  const isText = (value) => typeof value === "string";
  if (metadata !== null && !(isMap(metadata) && Object.values(metadata).every(isText)))
    throw malformed("metadata must be a map of strings");
  if (metadata !== null && Object.keys(metadata).length > 64)
    throw malformed("at most 64 entries of metadata");
  return { method, timeout, metadata };
}

function serve(socket) {
  let buffer = Buffer.alloc(0);
  let expects = options;
  let last = 0n;
  let draining = false;
  const running = new Map();

  socket.on("error", () => socket.destroy());
  socket.on("data", (data) => {
    buffer = Buffer.concat([buffer, data]);
    try {
      while (expects());
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      leave(error.code, error.message);
    }
  });
  socket.on("end", () => {
    if (expects === frames && buffer.length) leave("invalid_argument", "it ended inside a frame");
    else if (expects === options) socket.end();
    else drain();
  });
  socket.on("close", () => running.forEach((timer) => clearTimeout(timer)));

  function leave(code, message) {
    const ends = expects !== closed;
    expects = closed;
    buffer = Buffer.alloc(0);
    if (ends) socket.end(frame(GOAWAY, 0, last, json([code, message])));
  }

  function drain() {
    draining = true;
    if (!running.size && expects !== closed) leave("unavailable", "as you wish");
  }

  // Each takes one thing out of the buffer, and tells whether it was there.

  function closed() {
    buffer = Buffer.alloc(0);
    return false;
  }

  function options() {
    const end = buffer.indexOf("\n");
    if (!buffer.length || (end < 0 && buffer.length < MOST_LINE && buffer[0] === 0x7b)) return false;
    try {
      if (buffer[0] !== 0x7b) throw malformed("the line must begin with {");
      if (end < 0 || end >= MOST_LINE) throw malformed(`a line has at most ${MOST_LINE} bytes`);
      checkOptions(checkLine(buffer.subarray(0, end)));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      expects = closed;
      const { code, message } = error;
      const supported = { versions: [1], codecs: ["json"] };
      socket.end(JSON.stringify({ magic: MAGIC, error: { code, message }, supported }) + "\n");
      return false;
    }
    buffer = buffer.subarray(end + 1);
    // White space, an unknown key and an unknown feature are allowed; all else has defaults.
    const limits = { header: MOST_HEADER, body: MOST_BODY };
    const answer = { magic: MAGIC, version: 1, codec: "json", limits, features: ["own"], by: "node" };
    socket.write(JSON.stringify(answer).replaceAll(",", ", ") + "\r\n");
    expects = frames;
    return true;
  }

  function frames() {
    if (!buffer.length) return false;
    if (buffer[0] === 0x7b) throw malformed("a { where a frame should begin");
    if (buffer.length < 16) return false;
    const [type, flags] = [buffer.readUInt8(0), buffer.readUInt8(1)];
    const [headerSize, bodySize] = [buffer.readUInt16BE(2), buffer.readUInt32BE(4)];
    const id = buffer.readBigUInt64BE(8);
    if (headerSize > MOST_HEADER || bodySize > MOST_BODY) throw malformed("over the limit");
    if (type < 0x80) {
      const known = TYPES.get(type);
      if (known === undefined) throw malformed(`a frame of type ${type}`);
      if (flags & ~known[0] || (flags & RAW && flags & NAMED)) throw malformed(`flags ${flags}`);
      if ((headerSize && !known[1]) || (bodySize && !known[2])) throw malformed("not empty");
    }
    const [start, end] = [16 + headerSize, 16 + headerSize + bodySize];
    if (buffer.length < end) return false;
    const [header, body] = [buffer.subarray(16, start), buffer.subarray(start, end)];
    buffer = buffer.subarray(end);
    if (type === REQUEST) request(flags, id, header, body);
    else if (type === PING) socket.write(frame(PONG, 0, id, body));
    else if (type === CANCEL) finish(id);
    else if (type === GOAWAY) {
      checkGoaway(body);
      drain();
    }
    return true;
  }

  function checkGoaway(body) {
    let said = null;
    try {
      said = decode(body);
    } catch {}
    const isRight = Array.isArray(said) && said.length === 2;
    if (!isRight || !said.every((word) => typeof word === "string"))
      throw malformed("the body of a GOAWAY is an array of two strings");
  }

  function finish(id) {
    clearTimeout(running.get(id));
    running.delete(id);
    if (draining) drain();
  }

  function request(flags, id, header, body) {
    if (id === 0n || running.has(id)) throw malformed(`the id ${id}`);
    let fields;
    try {
      fields = decode(header);
    } catch (error) {
      throw malformed(`the header is not JSON: ${error.message}`);
    }
    const { method, timeout, metadata } = checkHeader(fields);
    last = id;
    const answers = !(flags & ONE_WAY);
    const fail = (code, message) =>
      answers && socket.write(frame(ERROR, NOT_EXECUTED, id, json([code, message, null])));
    if (draining) return fail("unavailable", "shutting down");
    if (timeout !== null && timeout <= 0) return fail("deadline_exceeded", "too late");
    if (!Object.hasOwn(methods, method)) return fail("unimplemented", `no method ${method}`);
    let args, named;
    try {
      [args, named] = readArguments(flags, body);
    } catch (error) {
      return fail("invalid_argument", String(error.message));
    }
    const names = Object.keys(named);
    const isOne = args.length === 1 && !names.length;
    const isNamed = !args.length && names.join() === "value" && method === "Basic.echo";
    const takesOne = method === "Basic.echo" || method === "Basic.same";
    if (takesOne ? !isOne && !isNamed : args.length || names.length)
      return fail("invalid_argument", `${method} takes ${takesOne ? "one value" : "nothing"}`);
    methods[method]({ flags, id, body, timeout, metadata, answers, args, named });
  }

  function readArguments(flags, body) {
    if (flags & RAW) return [[body], {}];
    if (!body.length) return [[], {}];
    const value = decode(body);
    if (!Array.isArray(value)) throw new Error("arguments are an array");
    if (!(flags & NAMED)) return [value, {}];
    if (value.length !== 2 || !Array.isArray(value[0]) || !isMap(value[1]))
      throw new Error("with NAMED they are an array and a map");
    return value;
  }

  const methods = {
    "Basic.echo": ({ flags, id, body, timeout, metadata, answers, args, named }) => {
      if (!answers) return;
      if (flags & RAW) return socket.write(frame(RESPONSE, RAW, id, body));
      const value = args.length ? args[0] : named.value;
      const all = [value, timeout > 0, metadata ?? {}];
      socket.write(frame(RESPONSE, 0, id, json(all)));
    },
    "Basic.same": ({ flags, id, body, answers, args }) => {
      if (answers) socket.write(frame(RESPONSE, flags & RAW, id, flags & RAW ? body : json(args[0])));
    },
    "Basic.slow": ({ id }) => {
      const timer = setTimeout(() => {
        socket.write(frame(RESPONSE, 0, id, json(1)));
        finish(id);
      }, 60000);
      running.set(id, timer);
    },
    "Basic.running": ({ id }) => socket.write(frame(RESPONSE, 0, id, json(running.size))),
    "Basic.leave": () => {
      last -= 1n; // this very call is not served
      leave("unavailable", "going home");
    },
    "Basic.break": ({ id }) => {
      expects = closed;
      socket.end(frame(RESPONSE, 0, id, json("cut")).subarray(0, 18));
    },
  };
}

const server = net.createServer({ allowHalfOpen: true }, serve);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
