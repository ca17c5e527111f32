// A server stream and an upload over plain TCP; written from docs/protocol.md, "Streams".
// node stream.js HOST PORT COUNT: takes COUNT numbers of Streams.count, sends them to Streams.total.
"use strict";
const net = require("node:net");

const [host, port, count] = process.argv.slice(2);
const REQUEST = 0x01, RESPONSE = 0x02, ERROR = 0x03, PING = 0x05, PONG = 0x06;
const ITEM = 0x08, END = 0x09, CREDIT = 0x0a;
const CLIENT_STREAM = 0x10, SERVER_STREAM = 0x20;

const WINDOW = 16384;
const socket = net.connect(Number(port), host);
const taken = [];
let buffer = Buffer.alloc(0);
let owed = 0; // bytes that were taken and not granted yet
let credit = 0; // bytes that the server still takes
let sent = 0;

socket.setTimeout(15000, () => fail("nothing came for 15 s"));
socket.on("error", (error) => fail(error.message));
socket.on("end", () => fail("the server hung up"));
socket.write(
  JSON.stringify({ magic: 0x52504350, version: 1, codec: "json", features: ["streams"] }) + "\n",
);
let expects = options;
socket.on("data", (data) => {
  buffer = Buffer.concat([buffer, data]);
  while (expects());
});

function fail(why) {
  console.error(why);
  process.exit(1);
}

function frame(type, flags, id, header, body) {
  const prefix = Buffer.alloc(16);
  prefix.writeUInt8(type, 0);
  prefix.writeUInt8(flags, 1);
  prefix.writeUInt16BE(header.length, 2);
  prefix.writeUInt32BE(body.length, 4);
  prefix.writeBigUInt64BE(BigInt(id), 8);
  socket.write(Buffer.concat([prefix, header, body]));
}

const json = (value) => Buffer.from(JSON.stringify(value));
const nothing = Buffer.alloc(0);

function options() {
  const end = buffer.indexOf("\n");
  if (end < 0) return false;
  const answer = JSON.parse(buffer.subarray(0, end));
  if (answer.error) fail(`${answer.error.code}: ${answer.error.message}`);
  if (!(answer.features || []).includes("streams")) fail("the server has no streams");
  buffer = buffer.subarray(end + 1);
  frame(REQUEST, SERVER_STREAM, 1, json(["Streams.count", 10000]), json([Number(count)]));
  expects = frames;
  return true;
}

function frames() {
  if (buffer.length < 16) return false;
  const start = 16 + buffer.readUInt16BE(2);
  const end = start + buffer.readUInt32BE(4);
  if (buffer.length < end) return false;
  const type = buffer.readUInt8(0);
  const id = Number(buffer.readBigUInt64BE(8));
  const body = buffer.subarray(start, end);
  buffer = buffer.subarray(end);
  if (type === ITEM && id === 1) take(JSON.parse(body), end);
  else if (type === RESPONSE && id === 1) upload();
  else if (type === CREDIT && id === 2) {
    credit += body.readUInt32BE(0);
    sendSome();
  } else if (type === RESPONSE && id === 2) {
    console.log(`${taken.length} taken, their sum is ${JSON.parse(body)}`);
    process.exit(0);
  } else if (type === PING) frame(PONG, 0, id, nothing, nothing);
  else if (type === ERROR) fail(body.toString());
  else if (type < 0x80) fail(`a frame of type ${type} for call ${id}`);
  return true;
}

function take(value, size) {
  taken.push(value);
  owed += size;
  if (owed >= WINDOW / 2) {
    const amount = Buffer.alloc(4);
    amount.writeUInt32BE(owed);
    frame(CREDIT, 0, 1, nothing, amount);
    owed = 0;
  }
}

function upload() {
  frame(REQUEST, CLIENT_STREAM, 2, json(["Streams.total", 10000]), json([]));
  credit = WINDOW;
  sendSome();
}

function sendSome() {
  while (credit > 0 && sent < taken.length) {
    const body = json(taken[sent++]);
    frame(ITEM, 0, 2, nothing, body);
    credit -= 16 + body.length;
    if (sent === taken.length) frame(END, 0, 2, nothing, nothing);
  }
}
