/** Files that are laid out when they are opened, and that the kernel reads then: which ones, and that they keep their bytes. */
import { spawn } from 'node:child_process'
import {
  closeSync,
  copyFileSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { noise } from '../fixtures/model.js'
import {
  attemptIn,
  call,
  HERE,
  type Mount,
  mount,
  noFuse,
  until,
  vimgfs,
} from '../support/mount.js'
import { noReflinks, qemuIo, type ReflinkType, reflinkFolder } from '../support/reflinks.js'
import { run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 4 * MIB + 512

function noPassthrough(): { skip?: string } {
  const [major = 0, minor = 0] = release().split('.').map(Number)
  return major > 6 || (major === 6 && minor >= 9) ? {} : { skip: 'needs Linux 6.9' }
}
const skipOn = (type: ReflinkType) => ({ ...noReflinks(type), ...noFuse(), ...noPassthrough() })

interface Served {
  readonly name: string
  readonly passthrough: boolean
  readonly reflink?: true
  readonly why?: string
}

const served = async ({ place, file }: Mount): Promise<Served[]> =>
  JSON.parse((await attemptIn(place, 'cat', [file('.vimgfs/status.json')])).stdout).files

const usedBytes = async (folder: string) => {
  await run('sync', ['-f', folder])
  return Number((await run('df', ['--output=used', '-B1', folder])).split('\n')[1])
}

/** Compares each file of a mount with the same file of a mount without passthrough. Returns how they are served. */
async function compared(t: Test, image: string, args: string[] = []): Promise<Served[]> {
  const plain = await mount(t, image, { args: ['-o', 'ro,passthrough=off', ...args] })
  const at = await mount(t, image, { args: ['-o', 'ro', ...args] })
  for (const { name, why } of await served(at)) {
    if (name.endsWith('.raw')) t.not(why, undefined, `${name} is not laid out before it is opened`)
    const [file, model] = [at.file(name), plain.file(name)]
    t.equal(await call(HERE, 'difference', file, model), -1, name)
    t.equal(await call(HERE, 'mapped', file), await call(HERE, 'sha256', model), `${name}, mapped`)
    t.strictSame(await call(HERE, 'data', file), await call(HERE, 'data', model))
    const attributes = (of: string) => attemptIn(HERE, 'stat', ['-c', '%s %b %f %y', of])
    t.same(await attributes(file), await attributes(model), name)
  }
  const found = await served(at)
  await run('umount', [at.folder])
  await run('umount', [plain.folder])
  return found
}

/** Makes a chain of a raw base and an overlay with a snapshot, compressed data in none of them. */
async function makeChain(folder: string): Promise<string> {
  const base = join(folder, 'base.img')
  writeFileSync(base, noise(SIZE, 3))
  const image = join(folder, 'disk.qcow2')
  const words = ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', image, String(SIZE)]
  await run('qemu-img', words)
  await qemuIo(image, 'qcow2', ['write -P 1 64k 192k', 'write -z 256k 128k', 'write -P 2 4M 512'])
  await run('qemu-img', ['snapshot', '-c', 'one', image])
  await qemuIo(image, 'qcow2', ['write -P 4 128k 64k', 'write -P 5 1536k 4k'])
  return image
}

const LAID_OUT = { passthrough: true, reflink: true }

for (const type of ['xfs', 'btrfs'] as const) {
  t.test(`${type}: files are laid out when they are opened`, skipOn(type), async t => {
    const folder = await reflinkFolder(t, type)
    const image = await makeChain(folder)
    const before = await usedBytes(folder)
    t.match(await compared(t, image), [LAID_OUT, LAID_OUT, LAID_OUT], 'disk, snapshot and base')
    t.ok((await usedBytes(folder)) - before < MIB, 'it takes no space')

    const packed = join(folder, 'packed.qcow2')
    writeFileSync(join(folder, 'even.img'), Buffer.alloc(MIB, 7))
    await run('qemu-img', ['convert', '-c', '-O', 'qcow2', join(folder, 'even.img'), packed])
    await qemuIo(packed, 'qcow2', ['write -P 8 64k 64k'])
    t.match(await compared(t, packed), [{ passthrough: false, why: 'materialize' }])
    t.match(await compared(t, packed, ['-o', 'materialize=1M']), [LAID_OUT])

    const at = await mount(t, image)
    t.equal(
      (await attemptIn(HERE, 'cat', [at.file('disk.raw')], { encoding: 'latin1' } as object)).code,
      0,
    )
    t.match(await served(at), [
      { passthrough: false },
      { passthrough: false, why: 'not those of one file' },
    ])
    await run('umount', [at.folder])
  })
}

t.test('an image that changes below a laid out file', skipOn('xfs'), async t => {
  const folder = await reflinkFolder(t, 'xfs')
  const image = await makeChain(folder)
  const model = join(folder, 'model.img')
  await run('qemu-img', ['convert', '-O', 'raw', image, model])
  const expected = await call(HERE, 'sha256', model)
  for (const [what, change] of [
    ['cut off', () => truncateSync(image, MIB / 2)],
    ['written in place', () => overwrite(image)],
    ['replaced', () => renameSync(join(folder, 'other'), image)],
  ] as const) {
    const kept = join(folder, 'kept')
    copyFileSync(image, kept)
    copyFileSync(model, join(folder, 'other'))
    const at = await mount(t, image, { args: ['-o', 'ro'] })
    const disk = at.file('disk.raw')
    const holder = await hold(t, disk)
    t.match(await served(at), [LAID_OUT], what)
    change()
    const opens = async () => (await attemptIn(HERE, 'head', ['-c', '1', disk])).code === 0
    t.ok(await until(async () => !(await opens())), `${what}: nobody can open it any more`)
    t.equal(await holder.sum(), expected, `${what}: an open handle reads what was there`)
    renameSync(kept, image)
    const { code, stderr } = await vimgfs(HERE, ['refresh', at.folder])
    t.equal(code, 0, stderr)
    t.equal(await call(HERE, 'difference', disk, model), -1, `${what}: refreshed`)
    t.match(await served(at), [LAID_OUT])
    await run('umount', [at.folder])
  }
})

/** Opens a file in another process, which reads it later. */
async function hold(t: Test, file: string): Promise<{ sum(): Promise<string> }> {
  const script = 'exec 3<"$1"; echo open; read word; sha256sum <&3'
  const child = spawn('sh', ['-c', script, 'sh', file], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  t.equal((await lines.next()).value, 'open')
  return {
    sum: async () => {
      child.stdin.end('go\n')
      return String((await lines.next()).value).slice(0, 64)
    },
  }
}

function overwrite(file: string): void {
  const bytes = readFileSync(file)
  const fd = openSync(file, 'r+')
  writeFileSync(
    fd,
    bytes.map(byte => byte ^ 255),
  )
  closeSync(fd)
}

t.test('a file system without room', skipOn('xfs'), async t => {
  const folder = await reflinkFolder(t, 'xfs')
  const image = await makeChain(folder)
  const packed = join(folder, 'packed.qcow2')
  writeFileSync(join(folder, 'even.img'), Buffer.alloc(2 * MIB, 7))
  await run('qemu-img', ['convert', '-c', '-O', 'qcow2', join(folder, 'even.img'), packed])
  await qemuIo(packed, 'qcow2', ['write -P 8 64k 64k'])
  const fill = ['-l', String(statSync(image).size * 1024), join(folder, 'fill')]
  await attemptIn(HERE, 'fallocate', fill)
  await attemptIn(HERE, 'dd', ['if=/dev/zero', `of=${join(folder, 'rest')}`, 'bs=64k'])
  await attemptIn(HERE, 'dd', ['if=/dev/zero', `of=${join(folder, 'last')}`, 'bs=4k'])
  await compared(t, image)
  t.match(await compared(t, packed, ['-o', 'materialize=2M']), [{ why: 'no room' }])
})

t.test('many openings at once wait for one layout', skipOn('xfs'), async t => {
  const folder = await reflinkFolder(t, 'xfs')
  const image = await makeChain(folder)
  const at = await mount(t, image, { args: ['-o', 'ro'] })
  const names = (await served(at)).map(({ name }) => at.file(name))
  const words = [...names, ...names, ...names, ...names]
  const all = await Promise.all(words.map(name => attemptIn(HERE, 'sha256sum', [name])))
  t.same(
    all.map(({ code }) => code),
    words.map(() => 0),
  )
  t.equal(new Set(all.map(({ stdout }) => stdout)).size, names.length, 'all read the same')
  t.match(await served(at), [LAID_OUT, LAID_OUT, LAID_OUT])
  const writing = await attemptIn(HERE, 'dd', ['if=/dev/zero', `of=${names[0]}`, 'count=1'])
  t.match(writing.stderr, 'Read-only file system')
})
