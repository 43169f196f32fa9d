/** The socket of a server against peers of every kind: what is no request is refused in one line, and others are still heard. */
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  openSync,
  closeSync,
  readdirSync,
  statSync,
} from 'node:fs'
import { symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { createConnection, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { NobodyListens, ServerConnection } from '../../src/control/client.js'
import { openFolder, openForServer } from '../../src/control/folders.js'
import { ControlSocket, type Handler } from '../../src/control/listener.js'
import { parseName } from '../../src/control/names.js'
import { type Greeting, PROTOCOL } from '../../src/control/protocol.js'
import { ImageError } from '../../src/errors.js'
import type { Logger } from '../../src/log.js'
import { holds } from '../support/property.js'
import { attempt, needsRoot, tempFolder } from '../support/run.js'
import { until } from '../support/until.js'

const UID = process.getuid?.() ?? 0
const GREETING: Greeting = {
  protocol: PROTOCOL,
  version: '0',
  pid: process.pid,
  image: '/image',
  mountpoint: '/mnt',
  device: '0:1',
  isWritable: true,
  diskFiles: ['disk.raw'],
}

interface Served {
  readonly folder: string
  readonly path: string
  readonly logged: string[]
  readonly socket: ControlSocket
}

function serve(
  t: Test,
  handler: Handler,
  { folder = tempFolder(t), requestMs = 60_000 } = {},
): Served {
  const logged: string[] = []
  const log = (_: unknown, message?: string) => logged.push(message ?? String(_))
  const logger = { warn: log, error: log } as unknown as Logger
  const image = join(folder, '..', `image-${process.pid}`)
  writeFileSync(image, '')
  const fd = openSync(image, 'r')
  const sockets = join(folder, 'vimgfs')
  const socket = ControlSocket.open(fd, logger, [sockets], requestMs)
  closeSync(fd)
  if (!socket) throw new Error(logged.join())
  t.teardown(() => socket.close())
  socket.serve(() => GREETING, handler)
  return { folder: sockets, path: socket.path, logged, socket }
}

const status: Handler = async () => ({ fine: true })

/** Resolves to all that the server says until it closes the connection. */
async function exchange(path: string, ...sent: (string | Buffer)[]): Promise<string> {
  const socket = createConnection(path)
  socket.on('error', () => {})
  for (const part of sent) socket.write(part)
  return textOf(socket)
}

async function textOf(socket: Socket): Promise<string> {
  const parts: Buffer[] = []
  socket.on('data', part => parts.push(part))
  await once(socket, 'close')
  return Buffer.concat(parts).toString()
}

const works = async (path: string) => {
  const connection = await ServerConnection.open(path, 'the server')
  const result = await connection.ask({ do: 'status' }, () => {})
  connection.close()
  return JSON.stringify(result) === '{"fine":true}'
}

t.test('a request is answered, with remarks before', async t => {
  const { path } = serve(t, async (request, { remark }) => {
    remark({ progress: 0.5 })
    remark({ say: 'nearly' })
    return request
  })
  const connection = await ServerConnection.open(path, 'the server')
  t.same(connection.greeting, GREETING)
  t.equal(connection.peer.uid, UID)
  const remarks: unknown[] = []
  const request = { do: 'create', tag: 'x', replace: false } as const
  t.same(await connection.ask(request, remark => remarks.push(remark)), request)
  t.same(remarks, [{ progress: 0.5 }, { say: 'nearly' }])
})

t.test('an error comes as one line with its exit code, and a bug without its stack', async t => {
  let error: Error = new ImageError('REFUSED', 'no', { path: 'a\nb', hint: 'do this' })
  const { path, logged } = serve(t, () => Promise.reject(error))
  const ask = async () => {
    const connection = await ServerConnection.open(path, 'the server')
    return connection.ask({ do: 'status' }, () => {})
  }
  await t.rejects(ask(), { message: 'a\\x0ab: no; do this', exit: 1 })
  t.same(logged, [])
  error = new TypeError('secret')
  await t.rejects(ask(), { message: /bug of its own/, exit: 1 })
  t.same(logged, ['a request has failed'])
})

t.test('what is no request is refused, and the next command is heard', async t => {
  const { path } = serve(t, status)
  const cases: [string | Buffer, RegExp][] = [
    ['x\n', /no JSON/],
    ['[]\n', /no object/],
    ['null\n', /no object/],
    ['{"do":"format"}\n', /knows no request/],
    ['{"do":"__proto__"}\n', /knows no request/],
    ['{"do":"status","more":1}\n', /no field/],
    ['{"do":"create","tag":1,"replace":false}\n', /tag of the request create is missing or wrong/],
    ['{"do":"create","tag":"x"}\n', /replace/],
    [
      '{"do":"delete","tags":["a",1],"ids":[],"byAge":false,"before":0,"dryRun":false,"wait":true}\n',
      /tags/,
    ],
    ['{"do":"resize","sign":"","bytes":-1}\n', /bytes/],
    ['{"do":"resize","sign":"","bytes":1e300}\n', /bytes/],
    [Buffer.alloc(70_000, 'x'), /65536 bytes at most/],
  ]
  for (const [sent, expected] of cases) {
    const [greeting, answer] = (await exchange(path, sent)).split('\n')
    t.same(JSON.parse(greeting!), GREETING)
    t.match(JSON.parse(answer!), { error: { message: expected, exit: 1 } })
  }
  t.notMatch(await exchange(path, '{"do":"status"}\nmore'), /fine/, 'more than one request')
  t.ok(await works(path))
})

t.test('no bytes of any kind end the server', async t => {
  let asked = 0
  const { path } = serve(t, async () => {
    asked++
    return { fine: true }
  })
  const text = fc.oneof(fc.json(), fc.string(), fc.constant('{"do":"status"}'))
  const bytes = fc.array(
    fc.oneof(
      text.map(one => Buffer.from(one)),
      fc.uint8Array({ maxLength: 50 }),
    ),
  )
  await holds(bytes, 100, async parts => {
    const socket = createConnection(path)
    socket.on('error', () => {})
    for (const part of parts) socket.write(part)
    socket.end('\n')
    await textOf(socket)
  })
  asked = 0
  t.ok(await works(path))
  t.equal(asked, 1)
})

t.test('half a request does not hold a connection for ever', async t => {
  const { path } = serve(t, status, { requestMs: 50 })
  t.match(await exchange(path, '{"do":'), /did not arrive in time/)
  t.match(await exchange(path), /did not arrive in time/)
})

t.test('a flood of connections is cut off, and a command is heard after it', async t => {
  const { path } = serve(t, status)
  const sockets = Array.from({ length: 60 }, () => createConnection(path).on('error', () => {}))
  const texts = sockets.map(textOf)
  const refused = await Promise.any(texts)
  t.match(refused, /too many commands ask at once/)
  for (const socket of sockets) socket.destroy()
  await Promise.all(texts)
  t.ok(await until(async () => works(path).catch(() => false)))
})

t.test('a command that leaves is noticed, and does not end the work', async t => {
  let left = false
  let ended = false
  const { path } = serve(t, async (_, { gone, remark }) => {
    await once(gone, 'abort')
    left = true
    remark({ progress: 1 })
    ended = true
  })
  const connection = await ServerConnection.open(path, 'the server')
  connection.ask({ do: 'status' }, () => {}).catch(() => {})
  setImmediate(() => connection.close())
  t.ok(await until(() => left && ended))
})

t.test('another user is refused, also one who can reach the socket', needsRoot(), async t => {
  const { path, folder, logged } = serve(t, status)
  const ask = () =>
    attempt('setpriv', [
      ...['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath, '-e'],
      `const s = require('net').createConnection('${path}'); s.on('error', e => console.log(e.code)); s.pipe(process.stdout)`,
    ])
  t.equal((await ask()).stdout.trim(), 'EACCES')
  for (const one of [path, folder, join(folder, '..')]) chmodSync(one, 0o777)
  const { stdout } = await ask()
  t.match(stdout, /^\{"error":\{"message":"the mount belongs to another user","exit":1\}\}\n$/)
  t.match(logged, [/another user/])
})

t.test('the socket goes with the mount, and one of a killed server with the next', async t => {
  const parent = tempFolder(t)
  const first = serve(t, status, { folder: parent })
  const { folder } = first
  const dead = join(folder, '1-2.3.00000000.sock')
  const young = join(folder, '.1-2.4.00000000.sock')
  const old = join(folder, '.1-2.5.00000000.sock')
  await leave(dead, young, old)
  utimesSync(old, 0, 0)
  writeFileSync(join(folder, 'note'), '')
  const second = serve(t, status, { folder: parent })
  t.same(
    readdirSync(folder).sort(),
    [young, first.path, second.path, join(folder, 'note')].map(one => one.split('/').pop()).sort(),
  )
  t.ok(await works(first.path))
  await t.rejects(ServerConnection.open(dead, 'it'), NobodyListens)
  first.socket.close()
  t.notOk(existsSync(first.path))
  t.ok(await works(second.path))
})

/** Makes sockets at which nobody listens. */
async function leave(...paths: string[]): Promise<void> {
  const script = `for (const path of ${JSON.stringify(paths)}) require('net').createServer().listen(path); setImmediate(() => process.kill(process.pid, 'SIGKILL'))`
  await attempt(process.execPath, ['-e', script])
}

t.test('a folder that others may enter, or could replace, is not used as it is', async t => {
  const folder = tempFolder(t)
  const at = (name: string) => join(folder, name)
  mkdirSync(at('real'), { mode: 0o755 })
  chmodSync(at('real'), 0o755)
  symlinkSync(at('real'), at('link'))
  writeFileSync(at('file'), '')
  t.equal(openFolder(at('link'), UID), 'it is not a folder')
  t.equal(openFolder(at('file'), UID), 'it is not a folder')
  t.equal(openFolder(at('real'), UID + 1), 'it belongs to another user')
  const opened = openForServer([at('link'), at('missing/x'), at('real')], UID)
  if (typeof opened === 'string') throw new Error(opened)
  t.equal(opened.path, at('real'))
  t.equal(statSync(at('real')).mode & 0o777, 0o700)
  opened.close()
  t.match(openForServer([at('link'), at('missing/x')], UID), /link: it is not.*x: no such file/)
})

t.test('a server that says something else is one line', async t => {
  const says = async (line: string, pattern: RegExp) => {
    const path = join(tempFolder(t), 's')
    const server = createServer(socket => socket.on('error', () => {}).end(line)).listen(path)
    await once(server, 'listening')
    await t.rejects(ServerConnection.open(path, 'the server', 30_000), { message: pattern })
    server.close()
  }
  await says('', /has ended before/)
  await says('garbage\n', /does not understand/)
  await says('{"protocol":2,"version":"9"}\n', /is of version 9/)
  await says(`{"protocol":${PROTOCOL}}\n`, /does not understand/)
  await says(`${JSON.stringify({ ...GREETING, diskFiles: ['../x'] })}\n`, /does not understand/)
  await says('{"error":{"message":"busy","exit":1}}\n', /^busy$/)
})

t.test('a server that hangs is one line after a time', async t => {
  const path = join(tempFolder(t), 's')
  const server = createServer(() => {}).listen(path)
  await once(server, 'listening')
  await t.rejects(ServerConnection.open(path, 'the server', 50), { message: /does not answer/ })
  server.close()
})

t.test('names', async t => {
  t.same(parseName('fe00-12.34.0123abcd.sock'), { key: 'fe00-12', pid: 34, isHidden: false })
  t.same(parseName('.b7:0.1.0123abcd.sock'), undefined)
  t.same(parseName('.b700.1.0123abcd.sock'), { key: 'b700', pid: 1, isHidden: true })
  for (const name of ['x', 'fe00-12.34.sock', 'fe00-12.34.0123abcd']) {
    t.equal(parseName(name), undefined)
  }
})
