/** Images on exports of NBD servers, mounted. */
import { readFileSync, statSync as stat } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  hasEnded,
  HERE,
  mount,
  noFuse,
  runIn,
  attemptIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, run } from '../support/run.js'
import { nbdServer, qemuNbd } from '../sources/nbd-server.js'

const statSync = (file: string) => stat(file, { bigint: true })
const skip = { ...needs('qemu-nbd', 'qemu-img', 'qemu-io', 'dd'), ...noFuse() }

async function makeImage(folder: string): Promise<string> {
  const file = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', file, '16M'])
  await run('qemu-io', ['-c', 'write -q -P 0x21 1M 2M', file])
  await run('qemu-img', ['snapshot', '-c', 'one', file])
  await run('truncate', ['-s', '40M', file])
  return file
}

const write = (file: string, megabyte: number, ...more: string[]) =>
  attemptIn(HERE, 'dd', [
    ...['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=2', `seek=${megabyte}`],
    ...['conv=notrunc', 'status=none', ...more],
  ])

t.test('by several threads; what is on the export is what the mount showed', skip, async t => {
  const folder = sharedFolder(t)
  const file = await makeImage(folder)
  const server = await nbdServer(t, folder, qemuNbd(file))
  const shown = await mount(t, server.address, { args: ['--threads', '4'] })
  t.match(shown.printed.stdout, /^disk1\.raw \(16 MiB\) with 1 snapshot .*read-write/)
  const disk = shown.file('disk1.raw')
  const written = await Promise.all([4, 6, 8, 10, 12].map(each => write(disk, each)))
  t.ok(written.every(({ code }) => code === 0))
  await runIn(HERE, 'cp', [disk, join(folder, 'want.raw')])
  await vimgfs(HERE, ['umount', shown.folder])
  t.ok(await hasEnded(t, shown.pid))
  await server.end()
  const compared = ['compare', '-f', 'qcow2', '-F', 'raw', file, join(folder, 'want.raw')]
  t.equal((await attempt('qemu-img', compared)).code, 0)
  t.equal((await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])).code, 0)
})

t.test(
  'the server is killed: what was flushed is there, the log says what is not, and unmounting ends',
  skip,
  async t => {
    const folder = sharedFolder(t)
    const file = await makeImage(folder)
    const server = await nbdServer(t, folder, qemuNbd(file))
    const shown = await mount(t, server.address, { args: ['-o', 'commit=0'] })
    const disk = shown.file('disk1.raw')
    t.equal((await write(disk, 4, 'conv=notrunc,fsync')).code, 0)
    await runIn(HERE, 'cp', [disk, join(folder, 'flushed.raw')])
    const before = statSync(file).mtimeNs
    const loop = 'for i in $(seq 40); do dd if=/dev/urandom of="$1" bs=1M seek=8 count=6 '
    const words = ['-c', `${loop} conv=notrunc,fsync status=none || exit 1; done`, 'sh', disk]
    const writing = attemptIn(HERE, 'sh', words)
    await until(() => statSync(file).mtimeNs !== before)
    await server.end('SIGKILL')
    await server.start()
    const after = await writing
    const ended = await vimgfs(HERE, ['umount', shown.folder])
    t.equal(ended.stderr.trim().split('\n').length, 1, 'one line at most')
    t.ok(await hasEnded(t, shown.pid))
    await server.end()
    const lines = shown
      .log()
      .split('\n')
      .filter(line => line.includes('connection to its server'))
    if (after.code !== 0) t.ok(lines.length >= 1 && lines.length <= 6, shown.log())
    const { code } = await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])
    t.ok(code === 0 || code === 3, 'leaks at worst')
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', file, join(folder, 'now.raw')])
    const [now, flushed] = ['now.raw', 'flushed.raw'].map(name => readFileSync(join(folder, name)))
    const M = 2 ** 20
    t.ok(now?.subarray(4 * M, 6 * M).equals(flushed?.subarray(4 * M, 6 * M) as Buffer))
  },
)

t.test('an export that is only read; scratch copies of it', skip, async t => {
  const folder = sharedFolder(t)
  const file = await makeImage(folder)
  const server = await nbdServer(t, folder, qemuNbd(file, '-r'))
  const shown = await mount(t, server.address)
  t.match(shown.printed.stderr, /its server gives it only for reading, mounted read-only/)
  await vimgfs(HERE, ['umount', shown.folder])
  const scratch = await mount(t, server.address, { args: ['-o', 'scratch'], folder: shown.folder })
  t.equal((await write(scratch.file('disk1.raw'), 3)).code, 0)
})
