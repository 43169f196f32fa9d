/** Logs that go to a daemon: its levels and its fields. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { JournalSink, SyslogSink, withSeverity } from '../src/log-sinks.js'
import { tempFolder } from './support/run.js'

const LINES = 3

/** Listens at a datagram socket, and resolves to what came when LINES datagrams have come, with a line between them. */
async function receiver(t: Test) {
  const socket = join(tempFolder(t), 'socket')
  const script = `use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); bind(S, sockaddr_un($ARGV[0])) or die; $| = 1;
    print "ready\\n"; for (1..${LINES}) { recv(S, $text, 65536, 0); print "$text--\\n" }`
  const child = spawn('perl', ['-e', script, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill())
  let text = ''
  child.stdout.on('data', part => {
    text += part
  })
  await once(child.stdout, 'data')
  const ended = once(child.stdout, 'close')
  return { socket, received: () => ended.then(() => text.replace('ready\n', '')) }
}

const lines = [30, 40, 60].map(level => `{"level":${level},"msg":"a"}\n`)

t.test('the journal', async t => {
  const { socket, received } = await receiver(t)
  const sink = new JournalSink(socket)
  for (const line of lines) sink.write(line)
  const expected = [
    [6, 30],
    [4, 40],
    [2, 60],
  ].map(
    ([priority, level]) =>
      `PRIORITY=${priority}\nSYSLOG_IDENTIFIER=vimgfs\nMESSAGE={"level":${level},"msg":"a"}\n--\n`,
  )
  t.equal(await received(), expected.join(''))
})

t.test('syslog', async t => {
  const { socket, received } = await receiver(t)
  const sink = new SyslogSink(socket)
  for (const line of lines) sink.write(line)
  const head = (priority: number) => `<${priority}>vimgfs[${process.pid}]: `
  t.equal(
    await received(),
    lines.map((line, at) => `${head([30, 28, 26][at]!)}${line.trimEnd()}--\n`).join(''),
  )
})

t.test('standard error of a service', async t => {
  t.same(
    lines.map(withSeverity),
    lines.map((line, at) => `<${[6, 4, 2][at]}>${line}`),
  )
})
