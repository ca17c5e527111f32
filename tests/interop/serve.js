// Serves Basic.echo and Basic.slow in JSON; written from docs/protocol.md. node serve.js
// Prints its port. A call of Basic.leave says GOAWAY, one of Basic.break sends half a frame and ends.
"use strict";
const net = require("node:net");

const [REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY] = [1, 2, 3, 4, 5, 6, 7];
const [RAW, NAMED, ONE_WAY, NOT_EXECUTED] = [1, 2, 4, 8];

function frame(type, flags, id, body) {
  const prefix = Buffer.alloc(16);
  prefix.writeUInt8(type, 0);
  prefix.writeUInt8(flags, 1);
  prefix.writeUInt32BE(body.length, 4);
  prefix.writeBigUInt64BE(id, 8);
  return Buffer.concat([prefix, body]);
}

const json = (value) => Buffer.from(JSON.stringify(value));

function serve(socket) {
  let buffer = Buffer.alloc(0);
  let expects = options;
  let last = 0n;
  const running = new Map();

  socket.on("error", () => socket.destroy());
  socket.on("data", (data) => {
    buffer = Buffer.concat([buffer, data]);
    while (expects());
  });

  function leave(code, message) {
    expects = () => false;
    socket.end(frame(GOAWAY, 0, last, json([code, message])));
  }

  // Each takes one thing out of the buffer, and tells whether it was there.

  function options() {
    const end = buffer.indexOf("\n");
    if (end < 0 && buffer.length < 4096) return false;
    let said = {};
    try {
      said = JSON.parse(buffer.subarray(0, end));
    } catch {}
    buffer = buffer.subarray(end + 1);
    const magic = 0x52504350;
    if (said.magic !== magic || said.version !== 1 || said.codec !== "json") {
      expects = () => false;
      const error = { code: "unimplemented", message: "this server speaks json" };
      const supported = { versions: [1], codecs: ["json"] };
      socket.end(JSON.stringify({ magic, error, supported }) + "\n");
      return false;
    }
    // White space, an unknown key and an unknown feature are allowed; all else has defaults.
    const answer = { magic, version: 1, codec: "json", features: ["own"], by: "node" };
    socket.write(JSON.stringify(answer).replaceAll(",", ", ") + "\r\n");
    expects = frames;
    return true;
  }

  function frames() {
    if (buffer.length < 16) return false;
    const [type, flags] = [buffer.readUInt8(0), buffer.readUInt8(1)];
    const start = 16 + buffer.readUInt16BE(2);
    const end = start + buffer.readUInt32BE(4);
    const id = buffer.readBigUInt64BE(8);
    if (buffer.length < end) return false;
    const [header, body] = [buffer.subarray(16, start), buffer.subarray(start, end)];
    buffer = buffer.subarray(end);
    if (type === REQUEST) request(flags, id, JSON.parse(header), body);
    else if (type === PING) socket.write(frame(PONG, 0, id, body));
    else if (type === CANCEL) {
      clearTimeout(running.get(id));
      running.delete(id);
    } else if (type === GOAWAY) leave("unavailable", "as you wish");
    else if (type !== PONG && type < 0x80) leave("invalid_argument", `a frame of type ${type}`);
    return true;
  }

  function request(flags, id, [method, timeout, metadata], body) {
    last = id;
    if (flags & ONE_WAY) return;
    if (method === "Basic.echo") {
      if (flags & RAW) return socket.write(frame(RESPONSE, RAW, id, body));
      const value = flags & NAMED ? JSON.parse(body)[1].value : JSON.parse(body)[0];
      return socket.write(frame(RESPONSE, 0, id, json([value, timeout > 0, metadata ?? {}])));
    }
    if (method === "Basic.slow") {
      return running.set(id, setTimeout(() => socket.write(frame(RESPONSE, 0, id, json(1))), 60000));
    }
    if (method === "Basic.running") {
      return socket.write(frame(RESPONSE, 0, id, json(running.size)));
    }
    if (method === "Basic.leave") {
      last -= 1n; // this very call is not served
      return leave("unavailable", "going home");
    }
    if (method === "Basic.break") return socket.end(frame(RESPONSE, 0, id, json("cut")).subarray(0, 18));
    const unknown = ["unimplemented", `no method ${method}`, null];
    socket.write(frame(ERROR, NOT_EXECUTED, id, json(unknown)));
  }
}

const server = net.createServer({ allowHalfOpen: false }, serve);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
