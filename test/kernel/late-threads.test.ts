/**
 * One thread serves until requests have to wait for it. Here they do, because the storage hangs: the image lies in another
 * mount, whose server is stopped. What prevents another thread does not harm the mount.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  HERE,
  isRoot,
  isRunning,
  kill,
  type Mount,
  mount,
  namespace,
  noFuse,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  until,
} from '../support/mount.js'

const skip = isRoot ? noFuse() : { skip: 'needs root' }
const PIECE = 2 ** 20
const PIECES = 32
const RAW = [...READ_ONLY, '--format', 'raw']
const letter = (piece: number) => String.fromCharCode(65 + piece)

/** A mount over storage that can hang. A piece can be waited for once: then it is cached. */
class Hanging {
  private static pieces = 0

  private constructor(
    readonly mount: Mount,
    private readonly storage: Mount,
  ) {}

  static async on(t: Test, storage: Mount, args: readonly string[] = [], place: Place = HERE) {
    const image = storage.file('disk.raw')
    const served = await mount(t, image, { place, args: [...RAW, ...args] })
    return new Hanging(served, storage)
  }

  /** Runs `act` while one read of the mount hangs. */
  async during(t: Test, act: () => Promise<void>): Promise<void> {
    const { place, file } = this.mount
    const piece = Hanging.pieces++ % PIECES
    kill(this.storage.pid, 'SIGSTOP')
    const words = [`if=${file('disk.raw')}`, 'bs=4096', 'count=1', `skip=${piece * 256 + 128}`]
    const reading = runIn(place, 'dd', [...words, 'status=none'])
    try {
      await act()
    } finally {
      kill(this.storage.pid, 'SIGCONT')
    }
    t.equal(await reading, letter(piece).repeat(4096))
  }

  async threads(): Promise<number> {
    const text = await runIn(this.mount.place, 'cat', [this.mount.file('.vimgfs/stats.json')])
    return JSON.parse(text).threads
  }
}

/** A mount that holds images: those of other mounts. */
async function storageOf(t: Test, place: Place = HERE): Promise<Mount> {
  const image = join(sharedFolder(t), 'disk.raw')
  const pieces = Array.from({ length: PIECES }, (_, i) => Buffer.alloc(PIECE, letter(i)))
  writeFileSync(image, Buffer.concat(pieces), { mode: 0o644 })
  const storage = await mount(t, image, { place, args: [...RAW, '-o', 'ro,allow_other'] })
  t.teardown(() => kill(storage.pid, 'SIGCONT'))
  return storage
}

t.test('a read that hangs', skip, async t => {
  const hanging = await Hanging.on(t, await storageOf(t))
  t.equal(await hanging.threads(), 1)
  await hanging.during(t, async () => {
    t.ok(await until(async () => (await hanging.threads()) === 2), 'the others are answered')
  })
  t.equal(await hanging.threads(), 2)
  t.notMatch(hanging.mount.log(), /no other thread/)
})

t.test('--threads 1 stays one', skip, async t => {
  const hanging = await Hanging.on(t, await storageOf(t), ['--threads', '1'])
  await hanging.during(t, async () => {})
  t.equal(await hanging.threads(), 1)
})

const sizeOf = (pid: number, field: string): number =>
  Number(
    new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(
      readFileSync(`/proc/${pid}/status`, 'utf8'),
    )?.[1],
  ) * 1024

const limit = (pid: number, option: string, value: number, place: Place = HERE) =>
  runIn(place, 'prlimit', [`--pid=${pid}`, `--${option}=${value}:`])

/** Reasons why no thread can start, by the words of the log. */
const OBSTACLES: Record<string, (pid: number) => Promise<unknown>> = {
  'the limit of the address space': pid => limit(pid, 'as', sizeOf(pid, 'VmSize') + 2 ** 27),
  'the limit of the data size': pid => limit(pid, 'data', sizeOf(pid, 'VmData') + 2 ** 25),
  'the limit of open files': pid =>
    limit(pid, 'nofile', readdirSync(`/proc/${pid}/fd`).length + 14),
}

/** Makes the mount want another thread, and looks at what it says. */
async function withoutAnother(t: Test, hanging: Hanging, why: string): Promise<void> {
  const { log, pid } = hanging.mount
  const said = () =>
    log()
      .split('\n')
      .find(line => line.includes('no other thread'))
  let isSaid = false
  // Some are answered before the read comes that hangs.
  const asking = (async () => {
    do t.equal(await hanging.threads(), 1)
    while (!isSaid)
  })()
  await hanging.during(t, async () => {
    isSaid = await until(() => said() !== undefined)
    t.ok(isSaid, 'it is logged')
    t.match(JSON.parse(said() ?? '{}').why, why)
    isSaid = true
  })
  await asking
  t.ok(isRunning(pid))
}

t.test('limits that are met later', skip, async t => {
  const storage = await storageOf(t)
  for (const [why, oppose] of Object.entries(OBSTACLES)) {
    const hanging = await Hanging.on(t, storage)
    await oppose(hanging.mount.pid)
    await withoutAnother(t, hanging, why)
  }
  // This one does not hold for root.
  const { root, user } = await namespace(t)
  const hanging = await Hanging.on(t, await storageOf(t, root), [], user)
  await limit(hanging.mount.pid, 'nproc', 1, user)
  await withoutAnother(t, hanging, 'the limit of processes is 1')
})
