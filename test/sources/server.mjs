/**
 * A web server with faults, for tests: started with fork, with the folder that it serves as its argument. It tells its port, and
 * takes changes of `rules` and questions by messages, because who tests may block.
 */
import fs from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import path from 'node:path'

const [, , folder, keyFile, certFile] = process.argv

const rules = {
  /** 'strong', 'weak' or 'none'. */
  etag: 'strong',
  hasTime: true,
  /** The part of the ETag that changes with the object. */
  version: 1,
  /** Whether conditions are looked at. */
  obeysIfMatch: true,
  /** The answers to the next requests, one each; then `always`. */
  next: [],
  always: 'none',
  /** Faults that requests get at random, with a probability in percent. */
  random: { seed: 1, percent: 0, kinds: [] },
  login: undefined,
  redirects: {},
}
let seen = { requests: 0, bytes: 0, log: [] }
let state = 1

function random() {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0
  return (state >>> 8) / 2 ** 24
}

function faultOf() {
  const next = rules.next.shift()
  if (next !== undefined) return next
  const { percent, kinds } = rules.random
  if (percent > 0 && random() * 100 < percent) return kinds[Math.floor(random() * kinds.length)]
  return rules.always
}

function serve(request, answer) {
  seen.requests++
  const { url, headers, method } = request
  seen.log.push({ method, url, headers })
  const target = rules.redirects[url]
  if (target !== undefined) {
    answer.writeHead(302, { location: target }).end()
    return
  }
  const fault = faultOf()
  const status = /^status (\d+)(?: after (.+))?$/.exec(fault)
  if (status) {
    const more = status[2] === undefined ? {} : { 'retry-after': status[2] }
    answer.writeHead(Number(status[1]), more).end('no')
    return
  }
  if (fault === 'silent') return
  if (fault === 'headers') {
    answer.socket.write('HTTP/1.1 206 Partial Content\r\n')
    const more = () =>
      answer.socket?.writable &&
      answer.socket.write(`x: ${'y'.repeat(8000)}\r\n`) &&
      setImmediate(more)
    more()
    return
  }
  const expected = rules.login && `Basic ${Buffer.from(rules.login).toString('base64')}`
  if (expected && headers.authorization !== expected) {
    answer.writeHead(401).end()
    return
  }
  const file = path.join(folder, decodeURIComponent(url.split('?')[0]))
  if (!fs.existsSync(file)) {
    answer.writeHead(404).end()
    return
  }
  const size = fs.statSync(file).size
  const tag = `${rules.etag === 'weak' ? 'W/' : ''}"v${rules.version}-${path.basename(file)}"`
  const common = {
    ...(rules.etag !== 'none' && { etag: tag }),
    ...(rules.hasTime && { 'last-modified': new Date(1.7e12 + rules.version * 1e6).toUTCString() }),
  }
  const condition = headers['if-match']
  if (rules.obeysIfMatch && condition !== undefined && condition !== tag) {
    answer.writeHead(412).end()
    return
  }
  const range = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '')
  if (!range || fault === 'no ranges') {
    answer.writeHead(200, { ...common, 'content-length': size })
    fs.createReadStream(file).pipe(answer)
    return
  }
  const first = Number(range[1])
  const last = Math.min(Number(range[2]), size - 1)
  const shift = fault === 'wrong range' ? 1 : 0
  const bytes = Buffer.alloc(Math.max(0, last - first + 1))
  const fd = fs.openSync(file, 'r')
  fs.readSync(fd, bytes, 0, bytes.length, first + shift)
  fs.closeSync(fd)
  const said = fault === 'other size' ? size + 1 : fault === 'huge' ? 2 ** 52 : size
  const all = {
    ...common,
    'content-length': fault === 'long' ? bytes.length + 2 ** 31 : bytes.length,
    'content-range': `bytes ${first + shift}-${last + shift}/${said}`,
    ...(fault === 'gzip' && { 'content-encoding': 'gzip' }),
  }
  answer.writeHead(206, all)
  const half = bytes.subarray(0, bytes.length >> 1)
  if (fault === 'drop') {
    answer.write(half, () => answer.destroy())
  } else if (fault === 'stall') answer.write(half)
  else if (fault === 'short') {
    answer.socket.end(half)
  } else if (fault === 'long') {
    answer.write(bytes)
    const more = () => answer.writable && answer.write(bytes, error => !error && setImmediate(more))
    more()
  } else answer.end(bytes)
  seen.bytes += bytes.length
}

const server = keyFile
  ? https.createServer({ key: fs.readFileSync(keyFile), cert: fs.readFileSync(certFile) }, serve)
  : http.createServer(serve)
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }))
process.on('message', message => {
  Object.assign(rules, message.rules ?? {})
  if (message.rules?.random) state = message.rules.random.seed
  const answer = { seen }
  if (message.forgets) seen = { requests: 0, bytes: 0, log: [] }
  process.send(answer)
})
// The test has ended.
process.on('disconnect', () => process.exit())
