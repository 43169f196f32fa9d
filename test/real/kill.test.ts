/**
 * kill -9 of a server under load, at moments that nobody chose: the image has leaks at worst, what was
 * synced is there, and the next mount goes on. KILL_SEED=n repeats the writes, not the moments.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import {
  hasEnded,
  HERE,
  isMounted,
  isRoot,
  kill,
  mount,
  mountFolder,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { repairImage, type RepairResult } from '../../src/index.js'
import { attempt, needs, run } from '../support/run.js'
import { asQemuNames, creating } from '../peers/encrypted.js'
import { PARENT } from '../soundness/cow-kinds.js'
import {
  checked,
  checkedByUs,
  convert,
  convertCow,
  countsAgree,
  createCow,
  isSameFile,
  isSound,
  type Named,
  readsAlike,
  snapshot,
  unmount,
} from './disks.js'
import { sized } from './size.js'

const STAMPS = fileURLToPath(new URL('kill-stamps.mjs', import.meta.url))
const SEED = Number(process.env.KILL_SEED ?? sized(1, Date.now() % 2 ** 31))
const SECTORS = 8
/** Of each writer; after them comes as much for noise. */
const BLOCKS = sized(2048, 4096)
const WRITERS = 3
const WATCHED_BLOCKS = WRITERS * BLOCKS
const DISK_BLOCKS = (WRITERS + 1) * BLOCKS

const qemuImg = (...args: string[]) => run('qemu-img', args)

interface Case {
  readonly name: string
  readonly kills: number
  readonly snapshots?: boolean
  /** The counts of such an image are wrong until it is mounted again. */
  readonly isLazy?: boolean
  /** qcow2 unless given. */
  readonly format?: 'vmdk' | 'qcow' | 'cow'
  readonly isEncrypted?: boolean
  readonly place?: Place
  /** Makes the image of what the raw file has. */
  create(folder: string, raw: string, image: string): Promise<unknown>
}

const compressed = (options?: string) => (_: string, raw: string, image: string) =>
  qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', ...optional(options), raw, image)

const optional = (options?: string) => (options === undefined ? [] : ['-o', options])

const CASES: readonly Case[] = [
  { name: 'compressed, snapshots', kills: sized(3, 100), snapshots: true, create: compressed() },
  { name: '4 KiB clusters', kills: sized(2, 50), create: compressed('cluster_size=4k') },
  {
    name: '512 B clusters, 64-bit counts',
    kills: sized(2, 50),
    snapshots: true,
    // The refcount table grows, too.
    create: (_, raw, image) => {
      const o = optional('cluster_size=512,refcount_bits=64')
      return qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...o, raw, image)
    },
  },
  {
    name: 'subclusters, snapshots',
    kills: sized(2, 50),
    snapshots: true,
    create: compressed('extended_l2=on'),
  },
  {
    name: 'lazy counts',
    kills: sized(2, 50),
    isLazy: true,
    create: compressed('lazy_refcounts=on'),
  },
  {
    name: 'on a backing file',
    kills: sized(2, 50),
    create: async (folder, raw, image) => {
      const base = join(folder, 'base.qcow2')
      await qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, base)
      await qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image)
    },
  },
  {
    name: 'vmdk on a stream',
    kills: sized(2, 50),
    format: 'vmdk',
    create: async (folder, raw, image) => {
      const base = join(folder, 'base.vmdk')
      const o = optional('subformat=streamOptimized')
      await qemuImg('convert', '-f', 'raw', '-O', 'vmdk', ...o, raw, base)
      await qemuImg('create', '-q', '-f', 'vmdk', '-b', base, '-F', 'vmdk', image)
    },
  },
  {
    name: 'LUKS, snapshots',
    kills: sized(2, 50),
    snapshots: true,
    isEncrypted: true,
    create: (_, raw, image) => {
      const o = 'encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10'
      const secret = namedWithKey(image).slice(0, 2)
      return creating(['convert', ...secret, '-f', 'raw', '-O', 'qcow2', '-o', o, raw, image])
    },
  },
  {
    name: 'qcow',
    kills: sized(2, 50),
    format: 'qcow',
    create: (_, raw, image) => qemuImg('convert', '-f', 'raw', '-O', 'qcow', raw, image),
  },
  {
    name: 'cow on a backing file',
    kills: sized(2, 50),
    format: 'cow',
    create: async (folder, raw, image) => {
      copyFileSync(raw, join(folder, PARENT))
      createCow(image, DISK_BLOCKS * SECTORS * 512)
    },
  },
  {
    name: 'compressed, snapshots, by libfuse',
    kills: sized(2, 50),
    snapshots: true,
    place: overLibfuse(HERE),
    create: compressed(),
  },
  {
    name: 'raw data file',
    kills: sized(2, 50),
    create: async (folder, raw, image) => {
      const o = optional(`data_file=${join(folder, 'data')},data_file_raw=on`)
      await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...o, raw, image)
    },
  },
]

const PASSPHRASE = 'correct-horse-7'

const namedWithKey = (file: string): string[] =>
  asQemuNames({ file, format: 'qcow2', passphrase: PASSPHRASE })

/** Processes that write to a mount until it is gone: started once, for starting one takes longer than most of its work. */
class Writers {
  private readonly each: { readonly do: (job: object) => Promise<any> }[]

  constructor(t: Test, count: number) {
    const env = { ...process.env, NODE_OPTIONS: '' }
    this.each = Array.from({ length: count }, () => {
      const child = spawn(process.execPath, [STAMPS], { stdio: ['pipe', 'pipe', 'inherit'], env })
      const lines = createInterface({ input: child.stdout })
      const ended = once(child, 'close').then(([code, signal]) => {
        throw new Error(`a writer has ended: ${code ?? signal}`)
      })
      t.teardown(async () => {
        child.kill('SIGKILL')
        await ended.catch(() => {})
      })
      return {
        do: async job => {
          const answer = once(lines, 'line')
          child.stdin.write(`${JSON.stringify(job)}\n`)
          const [line] = await Promise.race([answer, ended])
          return JSON.parse(line)
        },
      }
    })
  }

  do(index: number, command: string, job: object): Promise<any> {
    return this.each[index]!.do({ command, ...job })
  }
}

class Kills {
  private readonly folder: string
  private readonly image: string
  private readonly numbers: string
  private readonly raw: string
  private readonly mountpoint: string
  /** The disk as it was when a snapshot was taken, in a raw file. */
  private readonly states: Record<string, string> = {}
  private syncs = 0
  private readonly named: Named
  private readonly mounting: {
    readonly place: Place
    readonly folder: string
    readonly args: readonly string[]
  }

  constructor(
    private readonly t: Test,
    private readonly of: Case,
    private readonly writers: Writers,
  ) {
    this.folder = sharedFolder(t)
    this.image = join(this.folder, `disk.${of.format ?? 'qcow2'}`)
    this.numbers = join(this.folder, 'numbers')
    this.raw = join(this.folder, 'raw')
    this.mountpoint = mountFolder(t)
    const key = join(this.folder, 'passphrase')
    if (of.isEncrypted) writeFileSync(key, `${PASSPHRASE}\n`)
    this.named = of.isEncrypted ? namedWithKey(this.image) : this.image
    const args = of.isEncrypted ? ['--passphrase-file', key] : []
    this.mounting = { place: of.place ?? HERE, folder: this.mountpoint, args }
  }

  private get isKnownToQemu(): boolean {
    return this.of.format === undefined || this.of.format === 'vmdk'
  }

  private async convert(): Promise<string> {
    const { of, image, raw, named } = this
    return of.format === 'cow' ? convertCow(image, raw) : await convert(named, raw)
  }

  private async isSound(when: string): Promise<void> {
    if (this.isKnownToQemu) await isSound(this.t, this.named, when)
  }

  async run(): Promise<void> {
    const { t, image, of } = this
    const { raw: file, numbers } = this
    await this.writers.do(0, 'prepare', { file, numbers, sectors: DISK_BLOCKS * SECTORS })
    await of.create(this.folder, file, image)

    for (let round = 0; round < of.kills; round++) {
      const logs = await this.killedUnderLoad(round)
      if (of.format) await this.isMendedByUs(round)
      else if (of.isLazy) await this.mountsOnce()
      else await this.isLeakyAtWorst(round)
      await this.verify(await this.convert(), logs, `kill ${round + 1}`)
      if (of.snapshots && round < 3) {
        await snapshot(this.named, `s${round}`)
        this.states[`s${round}`] = join(this.folder, `s${round}`)
        copyFileSync(file, this.states[`s${round}`]!)
      }
      if (!t.passing()) return
    }
    t.ok(this.syncs > 0, `${this.syncs} syncs`)

    await readsAlike(t, image, file, this.states, {
      access: 'write',
      ...(of.isEncrypted && { passphrase: PASSPHRASE }),
    })
    if (of.format) await repairImage(image, 'leaks')
    else await qemuImg('check', '-q', '-r', 'leaks', ...[this.named].flat())
    await this.isSound('once the leaks are mended')
  }

  /** Mounts, writes, kills; resolves to what the writers noted. */
  private async killedUnderLoad(round: number): Promise<string[]> {
    const mounted = await mount(this.t, this.image, this.mounting)
    const file = mounted.file('disk.raw')
    if (round > 0) await isSameFile(this.t, file, this.raw, 'as it was left')
    const logs = Array.from({ length: WRITERS }, (_, i) => join(this.folder, `log${i}`))
    const writers = logs.map((log, i) => {
      const place = { first: i * BLOCKS, blocks: BLOCKS, direct: i === 1 }
      const number = (round + 1) * 1_000_000
      const seed = SEED + round * WRITERS + i
      return this.writers.do(i, 'write', { file, log, seed, number, ...place })
    })
    const noise = { file, first: WATCHED_BLOCKS, blocks: BLOCKS }
    writers.push(this.writers.do(WRITERS, 'noise', noise))
    await until(() => logs.every(log => existsSync(log)))
    // One kill at least finds something synced.
    if (round === this.of.kills - 1 && this.syncs === 0) {
      await until(() => logs.some(log => readFileSync(log, 'utf8').includes('synced')))
    }
    // All of them write; from now on any moment will do.
    await sleep(Math.random() ** 2 * sized(750, 5000))
    kill(mounted.pid, 'SIGKILL')
    this.t.ok(await hasEnded(this.t, mounted.pid), 'the server is gone')
    await Promise.all(writers)
    const { code } =
      round === 0
        ? await vimgfs(HERE, ['umount', this.mountpoint])
        : await attempt(isRoot ? 'umount' : 'fusermount3', [
            ...(isRoot ? [] : ['-u']),
            this.mountpoint,
          ])
    this.t.notOk(await isMounted(HERE, this.mountpoint), `umount of what is left: ${code}`)
    return logs
  }

  private async isLeakyAtWorst(round: number): Promise<void> {
    const state = await checked(this.named)
    this.t.ok(state === 'sound' || state === 'leaks', `kill ${round + 1}: ${state}`)
    await countsAgree(this.t, this.image, this.named)
    // Every other time the next mount gets the leaks.
    if (state !== 'leaks' || round % 2) return
    if (round % 4) await qemuImg('check', '-q', '-r', 'leaks', ...[this.named].flat())
    else await repairImage(this.image, 'leaks')
    await this.isSound('once the leaks are mended')
  }

  /** QEMU counts no leaks of such an image, and mends none, or knows nothing of it. */
  private async isMendedByUs(round: number): Promise<void> {
    const { t, image } = this
    await this.isSound(`kill ${round + 1}`)
    const state = await checkedByUs(image)
    t.ok(state === 'sound' || state === 'leaks', `kill ${round + 1}: vimgfs check: ${state}`)
    // Every other time the next mount gets the leaks.
    if (round % 2) return
    const { after, changes } = (await repairImage(image, 'leaks')) as RepairResult
    // Where a table may have been lost, what nothing names is kept: it may be data.
    const said = [...changes, ...after.findings].map(({ message }) => message).join('; ')
    const isKept = said.includes('space is kept: nothing names it')
    t.equal(after.corruptions + after.checkErrors, 0, said)
    t.ok(after.leaks === 0 || isKept, `${after.leaks} leaks ${said}`)
    await this.isSound('once the leaks are mended')
  }

  /** Which puts the counts right. */
  private async mountsOnce(): Promise<void> {
    await unmount(await mount(this.t, this.image, this.mounting))
    await this.isSound('once it was mounted')
  }

  private async verify(file: string, logs: string[], when: string): Promise<void> {
    const { numbers } = this
    const job = { file, numbers, logs, blocks: WATCHED_BLOCKS }
    const { syncs, open, wrongs, first, errors } = await this.writers.do(0, 'verify', job)
    this.syncs += syncs
    this.t.equal(wrongs, 0, `${when}: ${syncs} syncs, ${open} sectors open, ${first.join('; ')}`)
    const isGone = (error: string) => /^ended: (ENOTCONN|ECONNABORTED|EIO|.*errno \d+)/.test(error)
    this.t.ok(errors.every(isGone), `${when}: ${errors.join('; ')}`)
  }
}

t.test('kill -9', { ...noFuse(), ...needs('qemu-img') }, async t => {
  t.comment(`KILL_SEED=${SEED}`)
  const writers = new Writers(t, WRITERS + 1)
  for (const each of CASES) {
    const skip = each.place ? noLibfuse() : {}
    await t.test(`${each.name}: ${each.kills} kills`, skip, t => new Kills(t, each, writers).run())
  }
})
