/**
 * What root does with a disk: makes a file system on it through a loop device, copies a tree of
 * thousands of files in, checks, compares; with snapshots between the rounds, and QEMU's view of it
 * all at the end.
 */
import { cpSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, parse } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { loop, mountDevice } from '../support/loop.js'
import { type Mount, mount, mountFolder, noFuse, sharedFolder, until } from '../support/mount.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'
import { convert, isAsModel, isSound, snapshot, takenBytes, unmount } from './disks.js'
import { sized } from './size.js'

const MIB = 2 ** 20
const SIZE = sized('400M', '6G')
/** Each but the last ends with a snapshot. */
const ROUNDS = sized(2, 8)
/** The data that is written, removed and trimmed, to see the image file shrink. */
const JUNK_BYTES = sized(24, 512) * MIB
const NODE_MODULES = fileURLToPath(new URL('../../node_modules', import.meta.url))
/** Thousands of small files, some large ones, and links; half of the packages a round. */
const PACKAGES = sized(
  ['es-toolkit', 'typescript', '.bin', 'prismjs', '@isaacs', 'rimraf'],
  readdirSync(NODE_MODULES),
)

interface FileSystemKind {
  readonly type: 'ext4' | 'xfs' | 'btrfs'
  readonly make: readonly string[]
  readonly check: readonly string[]
  /** For reading what must not be written, also where the log would be replayed. */
  readonly readOnly: readonly string[]
  /** Whether the loop device bypasses the page cache of disk.raw. */
  readonly direct: boolean
  /** A snapshot of a vmdk is a new disk on top, and qcow2's are in the image. */
  readonly format: 'qcow2' | 'vmdk'
}

const ext4 = {
  type: 'ext4',
  make: ['mkfs.ext4', '-q', '-F'],
  check: ['e2fsck', '-fn'],
  readOnly: ['ro', 'noload'],
} as const

const KINDS: readonly FileSystemKind[] = [
  { ...ext4, direct: true, format: 'qcow2' },
  { ...ext4, direct: false, format: 'vmdk' },
  {
    type: 'xfs',
    make: ['mkfs.xfs', '-q', '-f'],
    check: ['xfs_repair', '-n'],
    readOnly: ['ro', 'norecovery', 'nouuid'],
    direct: false,
    format: 'qcow2',
  },
  {
    type: 'btrfs',
    make: ['mkfs.btrfs', '-q', '-f'],
    check: ['btrfs', 'check'],
    readOnly: ['ro'],
    direct: true,
    format: 'qcow2',
  },
]

/** What the disk was when a snapshot was taken. */
interface State {
  readonly name: string
  /** The image that has it. */
  readonly image: string
  /** A raw file of it. */
  readonly raw: string
}

const treeFolder = tempFolder(t)
const trees = new Map<number, Promise<string>>()

/** Returns the tree of this round, which all kinds of file systems get. */
function treeOf(round: number): Promise<string> {
  const tree = trees.get(round) ?? makeTree(round)
  trees.set(round, tree)
  return tree
}

/** Makes the tree of the round before with more packages, a file that has changed, and a folder that has come or gone. */
async function makeTree(round: number): Promise<string> {
  const tree = join(treeFolder, `${round}`)
  // The files that stay need no copy.
  if (round > 1) await run('cp', ['-al', await treeOf(round - 1), tree])
  const copy = (name: string, to: string) => {
    const options = { recursive: true, verbatimSymlinks: true }
    cpSync(join(NODE_MODULES, name), join(tree, to), options)
  }
  for (const [index, name] of PACKAGES.entries()) {
    if (index % 2 === round % 2) copy(name, `${round} ${name}`)
  }
  const changed = join(tree, 'changed')
  rmSync(changed, { force: true })
  writeFileSync(changed, `round ${round}\n`.repeat(100_000))
  if (round % 2) copy('tar', 'gone')
  else rmSync(join(tree, 'gone'), { recursive: true })
  return tree
}

class Rounds {
  private readonly folder: string
  private image: string
  private readonly mountpoint: string
  /** What the file system is to hold. */
  private tree = ''
  private readonly states: State[] = []

  constructor(
    private readonly t: Test,
    private readonly kind: FileSystemKind,
  ) {
    this.folder = sharedFolder(t)
    this.image = join(this.folder, `disk.${kind.format}`)
    this.mountpoint = mountFolder(t)
  }

  async run(): Promise<void> {
    const { t, kind } = this
    await run('qemu-img', ['create', '-q', '-f', kind.format, this.image, SIZE])
    for (let round = 1; round <= ROUNDS; round++) {
      await t.test(`round ${round}`, t => this.round(t, round))
      // What comes after would only tell of this.
      if (!t.passing()) return
      await isSound(t, this.image, `after round ${round}`)
      if (round < ROUNDS) await this.snapshot(round)
    }
    await t.test('mounted anew', async t => {
      const mounted = await this.mount()
      await this.comparesReadOnly(t, this.disk(mounted))
      for (const state of this.states) {
        await isAsModel(t, this.disk(mounted, state), state.raw, state.name)
      }
      // A file system of the past can be looked at while the disk has moved on.
      await this.reads(t, this.disk(mounted, this.states[0]), 'round 1')
      await unmount(mounted)
    })
    await t.test('converted by qemu-img', async t => {
      const raw = await convert(this.image, join(this.folder, 'raw'))
      await this.comparesReadOnly(t, raw)
      for (const state of this.states) {
        const tag = kind.format === 'qcow2' ? state.name : undefined
        await isAsModel(
          t,
          await convert(state.image, raw, tag),
          state.raw,
          `${state.name} for QEMU`,
        )
      }
    })
  }

  private mount(): Promise<Mount> {
    return mount(this.t, this.image, { folder: this.mountpoint })
  }

  /** The disk in a mount, or a state of it. */
  private disk({ file }: Mount, state?: State): string {
    const { name } = parse(this.image)
    return file(state ? `${name}@${state.name}.raw` : `${name}.raw`)
  }

  private async snapshot(round: number): Promise<void> {
    const { image, folder, kind } = this
    const raw = await convert(image, join(folder, `state-${round}`))
    if (kind.format === 'qcow2') {
      const name = `round ${round}`
      await snapshot(image, name)
      this.states.push({ name, image, raw })
      return
    }
    this.states.push({ name: parse(image).name, image, raw })
    this.image = join(folder, `disk-${round}.vmdk`)
    await run('qemu-img', ['create', '-q', '-f', 'vmdk', '-b', image, '-F', 'vmdk', this.image])
  }

  private async round(t: Test, round: number): Promise<void> {
    const { type, make, check, direct } = this.kind
    const mounted = await this.mount()
    const { device, detach } = await loop(t, this.disk(mounted), { direct })
    if (round === 1) await run(make[0]!, [...make.slice(1), device])
    if (round === ROUNDS) await this.trims(t, device)
    const inside = await mountDevice(t, device, type)
    this.tree = await treeOf(round)
    const target = join(inside.folder, 'tree')
    await run('rm', ['-rf', join(target, 'gone')])
    // Files of the rounds before are written over, and thousands are new.
    await run('cp', ['-a', '--no-target-directory', this.tree, target])
    await run('sync', ['--file-system', inside.folder])
    await this.compares(t, inside.folder, 'while it is mounted')
    await inside.unmount()
    const checked = await attempt(check[0]!, [...check.slice(1), device])
    const output = checked.code === 0 ? '' : `${checked.stdout}${checked.stderr}`.slice(-2000)
    t.equal(checked.code, 0, `${check[0]} ${output}`.trim())
    await detach()
    await unmount(mounted)
  }

  /** What a file took is given back to the image file once it has gone and the space is trimmed. */
  private async trims(t: Test, device: string): Promise<void> {
    let inside = await mountDevice(t, device, this.kind.type)
    const junk = join(inside.folder, 'junk')
    await run('fstrim', [inside.folder])
    const before = takenBytes(this.image)
    const count = `count=${JUNK_BYTES / MIB}`
    await run('dd', ['if=/dev/urandom', `of=${junk}`, 'bs=1M', count, 'conv=fsync'])
    const full = takenBytes(this.image)
    t.ok(full - before > 0.9 * JUNK_BYTES, `${full - before} bytes more with ${JUNK_BYTES} written`)
    await run('rm', [junk])
    // XFS trims no space whose freeing is still under way; after a mount none is.
    await inside.unmount()
    inside = await mountDevice(t, device, this.kind.type)
    await run('fstrim', [inside.folder])
    await inside.unmount()
    // Space is given back once nothing on disk points at it: with the next flush.
    await until(() => full - takenBytes(this.image) > 0.9 * JUNK_BYTES)
    const given = full - takenBytes(this.image)
    t.ok(given > 0.9 * JUNK_BYTES, `${given} bytes given back of ${JUNK_BYTES}`)
  }

  private async compares(t: Test, inside: string, when: string): Promise<void> {
    const args = ['-r', '--no-dereference', this.tree, join(inside, 'tree')]
    const { code, stdout, stderr } = await attempt('diff', args)
    t.equal(code, 0, `the tree ${when} ${stdout.slice(0, 1000)}${stderr.slice(0, 1000)}`.trim())
  }

  private async comparesReadOnly(t: Test, file: string): Promise<void> {
    await t.test('read-only', async t => {
      const { device } = await loop(t, file, { readOnly: true })
      const inside = await mountDevice(t, device, this.kind.type, this.kind.readOnly)
      await this.compares(t, inside.folder, 'read-only')
    })
  }

  private async reads(t: Test, file: string, round: string): Promise<void> {
    await t.test(`inside of ${round}`, async t => {
      const { device } = await loop(t, file, { readOnly: true })
      const inside = await mountDevice(t, device, this.kind.type, this.kind.readOnly)
      t.match(await run('head', ['-n', '1', join(inside.folder, 'tree', 'changed')]), round)
    })
  }
}

for (const kind of KINDS) {
  const commands = [kind.make[0]!, kind.check[0]!, 'losetup', 'fstrim', 'qemu-img']
  const skip = { ...noFuse(), ...needs(...commands), ...needsRoot() }
  t.test(`${kind.type} on ${kind.format}`, skip, t => new Rounds(t, kind).run())
}
