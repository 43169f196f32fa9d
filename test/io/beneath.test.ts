/** Opening files below a folder, by the kernel's rule and by hand, even while another process exchanges names. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { constants } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import koffi from 'koffi'
import t, { type Test } from 'tap'
import { ImageError, SystemError } from '../../src/errors.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { openBeneath, opener, openPlain, pathOfDescriptor } from '../../src/io/beneath.js'
import { closeFile } from '../../src/io/libc.js'
import { holding } from '../support/folders.js'
import { MAIN } from '../support/mount.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'

const { ENOSYS, EPERM } = constants.errno
const support = (name: string) => fileURLToPath(new URL(`../support/${name}`, import.meta.url))
/** How long names are exchanged, in milliseconds. */
/** Looks during a race, and at most where not all has been met by then. */
const LOOKS = 4000
const MOST_LOOKS = 400_000

const failing = (errno: number, calls: { count: number } = { count: 0 }) =>
  opener(() => {
    calls.count++
    koffi.errno(errno)
    return -1
  })
const OPENERS = [
  { title: 'by the kernel', open: openBeneath },
  { title: 'by hand, without openat2', open: failing(ENOSYS) },
  { title: 'by hand, with openat2 forbidden', open: failing(EPERM) },
]
type Open = (typeof OPENERS)[number]['open']

/** What `name` below `folder` holds, or the error's code. */
function read(open: Open, folder: string, name: string | Buffer): string {
  return holding([folder], ([held]) => {
    try {
      const fd = open(held!.fd, Buffer.from(name as string))
      try {
        const stat = fs.fstatSync(fd)
        return stat.isFile() ? fs.readFileSync(pathOfDescriptor(fd), 'utf8') : 'no file'
      } finally {
        closeFile(fd)
      }
    } catch (error) {
      if (error instanceof SystemError) return error.code
      throw error
    }
  })
}

function scene(t: Test) {
  const folder = join(tempFolder(t), 'img')
  const outside = join(folder, '..', 'outside')
  for (const each of [folder, outside, join(folder, 'sub'), join(folder, 'sub', 'deep')])
    fs.mkdirSync(each)
  fs.writeFileSync(join(folder, 'x'), 'x')
  fs.writeFileSync(join(folder, 'sub', 'y'), 'y')
  fs.writeFileSync(join(outside, 'y'), 'secret')
  const link = (target: string, name: string) => fs.symlinkSync(target, join(folder, name))
  link('x', 'to-x')
  link('sub', 'to-sub')
  link('sub/deep/../y', 'to-y')
  link('../x', 'sub/up')
  link('../../outside/y', 'sub/out')
  link('../outside', 'out')
  link(join(folder, 'x'), 'absolute')
  link('loop', 'loop')
  link('/proc/self/fd/0', 'magic')
  for (let i = 1; i <= 41; i++) link(i === 1 ? 'x' : `chain${i - 1}`, `chain${i}`)
  return { folder, outside }
}

for (const { title, open } of OPENERS) {
  t.test(title, async t => {
    const { folder } = scene(t)
    const found: Record<string, string> = {
      x: 'x',
      './/x': 'x',
      'sub/y': 'y',
      'sub/../x': 'x',
      'sub/deep/../../x': 'x',
      'to-x': 'x',
      'to-sub/y': 'y',
      'to-y': 'y',
      'sub/up': 'x',
      'to-sub/../x': 'x',
      '.': 'no file',
      sub: 'no file',
      chain40: 'x',
      chain41: 'ELOOP',
      loop: 'ELOOP',
      'x/y': 'ENOTDIR',
      'x/..': 'ENOTDIR',
      nowhere: 'ENOENT',
      'nowhere/../x': 'ENOENT',
      '..': 'EXDEV',
      '../img/x': 'EXDEV',
      'sub/../../outside/y': 'EXDEV',
      'sub/out': 'EXDEV',
      'out/y': 'EXDEV',
      absolute: 'EXDEV',
      '/etc/passwd': 'EXDEV',
      ['x'.repeat(256)]: 'ENAMETOOLONG',
    }
    for (const [name, expected] of Object.entries(found)) {
      t.equal(read(open, folder, name), expected, name.slice(0, 40))
    }
    t.match(read(open, folder, 'magic'), /^(EXDEV|ELOOP)$/, 'a magic link')
    const inLatin1 = Buffer.concat([Buffer.from(`${folder}/`), Buffer.from('d\xff', 'latin1')])
    fs.writeFileSync(inLatin1, 'not UTF-8')
    t.equal(read(open, folder, Buffer.from('d\xff', 'latin1')), 'not UTF-8')
  })

  t.test(`${title}, while names are exchanged`, async t => {
    const { folder } = scene(t)
    const wanted = ['y', 'EXDEV']
    const [a, b] = [join(folder, 'sub'), join(folder, 'out')]
    const count = await duringExchange(t, a, b, wanted, seen => seen(read(open, folder, 'sub/y')))
    t.notOk(count.secret, 'nothing outside is opened')
    t.ok(count.y && count.EXDEV, 'both names were met')
  })
}

t.test('openat2 is asked for until it is missing', async t => {
  const { folder } = scene(t)
  const calls = { count: 0 }
  const open = failing(ENOSYS, calls)
  for (let i = 0; i < 3; i++) t.equal(read(open, folder, 'x'), 'x')
  t.equal(calls.count, 1)
})

t.test('links in a folder that everybody shares', async t => {
  const { folder } = scene(t)
  if (process.getuid?.() !== 0) return
  fs.chmodSync(folder, 0o1777)
  fs.lchownSync(join(folder, 'to-x'), 65534, 65534)
  t.equal(read(failing(ENOSYS), folder, 'to-x'), 'EACCES', "somebody else's")
  t.equal(read(failing(ENOSYS), folder, 'to-sub/y'), 'y', "one's own")
})

t.test('only regular files are opened', async t => {
  const { folder } = scene(t)
  await run('mkfifo', [join(folder, 'fifo')])
  holding([folder], ([held]) => {
    for (const name of ['fifo', 'sub', 'to-x']) {
      t.equal(openPlain(held!.fd, Buffer.from(name)), undefined, name)
    }
    const fd = openPlain(held!.fd, Buffer.from('x')) as number
    t.equal(fs.readFileSync(fd, 'utf8'), 'x')
    fs.closeSync(fd)
    t.throws(() => openPlain(held!.fd, Buffer.from('nowhere')), { code: 'ENOENT' })
  })
})

t.test('images', needs('qemu-img'), async t => {
  const MiB = 2 ** 20
  /** img/i.qcow2 on `backing` (1 MiB), and outside/sub/x.raw (3 MiB) beside an image. */
  async function images(t: Test, backing: string) {
    const { folder, outside } = scene(t)
    const create = (file: string, name: string, cwd: string) =>
      run('qemu-img', ['create', '-qu', '-f', 'qcow2', '-b', name, '-F', 'raw', file, '1M'], {
        cwd,
      })
    for (const [root, size] of [
      [folder, MiB],
      [outside, 3 * MiB],
    ] as const) {
      fs.mkdirSync(join(root, 'disks'))
      fs.writeFileSync(join(root, 'disks', 'x.raw'), '')
      fs.truncateSync(join(root, 'disks', 'x.raw'), size)
    }
    await create('i.qcow2', backing.replace('OUTSIDE', outside), folder)
    await create('decoy.qcow2', 'nothing', outside)
    return { folder, outside, image: join(folder, 'i.qcow2') }
  }
  /** The size of the lowest layer, or the error's code. */
  const lowest = (image: string, allowPaths: readonly string[] = []): string => {
    try {
      const chain = openChain(image, { allowPaths })
      closeChain(chain)
      return String(chain.layers.at(-1)?.sizeBytes)
    } catch (error) {
      if (error instanceof ImageError) return error.code
      throw error
    }
  }

  t.test('the subfolder of a backing file is exchanged', async t => {
    const { folder, outside, image } = await images(t, 'disks/x.raw')
    fs.symlinkSync(join(outside, 'disks'), join(folder, 'lnk'))
    const [a, b] = [join(folder, 'disks'), join(folder, 'lnk')]
    const count = await duringExchange(t, a, b, [MiB], seen => seen(lowest(image)))
    t.notOk(count[3 * MiB], 'nothing outside is opened')
    t.ok(count[MiB], `the right one is: ${JSON.stringify(count)}`)
  })

  t.test('the image is exchanged with a link to an image elsewhere', async t => {
    const { folder, outside, image } = await images(t, 'OUTSIDE/disks/x.raw')
    fs.symlinkSync(join(outside, 'decoy.qcow2'), join(folder, 'lnk'))
    const wanted = ['REFUSED', 'MISSING']
    const count = await duringExchange(t, image, join(folder, 'lnk'), wanted, seen =>
      seen(lowest(image)),
    )
    t.notOk(count[3 * MiB], 'nothing outside is opened')
    t.ok(count.REFUSED && count.MISSING, `both were met: ${JSON.stringify(count)}`)
  })

  t.test('the subfolder of an allowed folder is exchanged', async t => {
    const { folder, outside, image } = await images(t, '../allowed/disks/x.raw')
    const allowed = join(folder, '..', 'allowed')
    fs.mkdirSync(allowed)
    fs.renameSync(join(folder, 'disks'), join(allowed, 'disks'))
    fs.symlinkSync(join(outside, 'disks'), join(allowed, 'lnk'))
    t.equal(lowest(image, [allowed]), String(MiB))
    const [a, b] = [join(allowed, 'disks'), join(allowed, 'lnk')]
    const count = await duringExchange(t, a, b, [MiB], seen => seen(lowest(image, [allowed])))
    t.notOk(count[3 * MiB], 'nothing outside is opened')
    t.ok(count[MiB], `the right one is: ${JSON.stringify(count)}`)
  })

  t.test('links that stay inside are followed', async t => {
    for (const errno of [0, ENOSYS, EPERM]) {
      const { folder, outside, image } = await images(t, 'lnk/x.raw')
      const info = () => {
        const words = [MAIN, 'info', '--backing-chain', '--output=json', image]
        const loader = errno === 0 ? [] : ['--import', support('without-openat2.mjs')]
        const env = { DENY_ERRNO: String(errno), NODE_OPTIONS: '' }
        return attempt(process.execPath, [...loader, ...words], { env })
      }
      for (const target of ['disks', join(folder, 'disks'), `../${basename(folder)}/disks`]) {
        fs.symlinkSync(target, join(folder, 'lnk'))
        const { code, stdout, stderr } = await info()
        t.equal(code, 0, `${target}, ${errno}: ${stderr}`)
        t.equal(JSON.parse(stdout)[1]['virtual-size'], MiB)
        fs.rmSync(join(folder, 'lnk'))
      }
      fs.symlinkSync(join(outside, 'disks'), join(folder, 'lnk'))
      const { code, stderr } = await info()
      t.equal(code, 1)
      t.match(stderr, /lies outside the image's folder; allow it with --allow-path/)
    }
  })

  t.test('images named by descriptors and links', async t => {
    const { folder, image } = await images(t, 'disks/x.raw')
    const fd = fs.openSync(image, 'r')
    t.equal(lowest(pathOfDescriptor(fd)), 'MISSING', 'the folder is that of its name')
    fs.symlinkSync('img/i.qcow2', join(folder, '..', 'first'))
    fs.symlinkSync('first', join(folder, '..', 'second'))
    t.equal(lowest(join(folder, '..', 'second')), 'MISSING', 'names count from the name given')
    fs.symlinkSync(join(folder, 'disks'), join(folder, '..', 'disks'))
    t.equal(lowest(join(folder, '..', 'second')), String(MiB), 'its own folder is allowed')
    fs.rmSync(image)
    t.equal(lowest(pathOfDescriptor(fd)), 'MISSING')
    fs.closeSync(fd)
  })
})

/** What `look` has seen, and how often, while `a` and `b` are exchanged; looks on until it has seen `wanted`. */
async function duringExchange(
  t: Test,
  a: string,
  b: string,
  wanted: readonly (string | number)[],
  look: (seen: (what: string) => void) => void,
): Promise<Record<string, number>> {
  const child = spawn(process.execPath, [support('exchange.mjs'), a, b], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  const ended = once(child, 'close')
  try {
    await Promise.race([once(child.stdout, 'data'), ended])
    const count: Record<string, number> = {}
    const isDone = () => wanted.every(what => count[what])
    for (let looks = 0; looks < LOOKS || (looks < MOST_LOOKS && !isDone()); looks++) {
      look(what => (count[what] = (count[what] ?? 0) + 1))
    }
    t.comment(JSON.stringify(count))
    return count
  } finally {
    child.kill('SIGKILL')
    await ended
  }
}
