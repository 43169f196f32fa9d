/** What the tests of this folder do with an image besides mounting it, and the peer that decides. */
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import { type CheckResult, checkImage, openImage, type OpenImageOptions } from '../../src/index.js'
import { judgeCow, type Layout } from '../soundness/cow-judge.js'
import { buildCow, PARENT } from '../soundness/cow-kinds.js'
import { call, HERE, isRoot, isRunning, type Mount, until } from '../support/mount.js'
import { attempt, type Finished, run } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

/**
 * Unmounts; resolves when the server has ended. All of it is in the image then. By the system's own command, which
 * takes a tenth of the time of `vimgfs umount`.
 */
export async function unmount({ folder, pid }: Mount): Promise<void> {
  const [command, ...options] = isRoot ? ['umount'] : ['fusermount3', '-u']
  await run(command, [...options, folder])
  if (!(await until(() => !isRunning(pid)))) throw new Error(`server ${pid} has not ended`)
}

/** What names an image to QEMU: its path, or options and what stands where a path would, for some image. */
export type Named = string | readonly string[]

const optionsOf = (image: Named): readonly string[] =>
  typeof image === 'string' ? [] : image.slice(0, -1)
const nameOf = (image: Named): string =>
  typeof image === 'string' ? image : (image.at(-1) as string)

/** What `qemu-img check` says of an image that nobody has open: sound, leaks, or worse. */
export async function checked(image: Named): Promise<'sound' | 'leaks' | string> {
  const args = ['check', ...optionsOf(image), nameOf(image)]
  return verdictOf(await attempt('qemu-img', args))
}

function verdictOf({ code, stdout, stderr }: Finished): string {
  if (code === 0) return 'sound'
  return code === 3 ? 'leaks' : `exit ${code}\n${stderr.slice(-3000)}${stdout.slice(-3000)}`
}

/** The same from the code of `vimgfs check`, in this process, for formats that QEMU has no check for. */
export async function checkedByUs(image: string): Promise<'sound' | 'leaks' | string> {
  const found = (await checkImage(image)) as CheckResult
  const code = codeOf(found)
  const findings = found.findings.slice(0, 20).map(({ at, message }) => `at ${at}: ${message}`)
  return verdictOf({ code, stdout: findings.join('\n'), stderr: '' })
}

const codeOf = ({ checkErrors, corruptions, leaks }: CheckResult): number =>
  checkErrors > 0 ? 1 : corruptions > 0 ? 2 : leaks > 0 ? 3 : 0

export async function isSoundForUs(
  t: Test,
  image: string,
  when = '',
  mayLeak = false,
): Promise<void> {
  const verdict = await checkedByUs(image)
  const isSound = verdict === 'sound' || (mayLeak && verdict === 'leaks')
  t.ok(isSound, `vimgfs check: ${verdict} ${when}`)
}

/** The code of `vimgfs check` finds what `qemu-img check` finds. */
export async function countsAgree(t: Test, image: string, named: Named = image): Promise<void> {
  const check = ['check', '--output=json', ...optionsOf(named), nameOf(named)]
  const theirs = await attempt('qemu-img', check)
  const ours = (await checkImage(image)) as CheckResult
  t.equal(codeOf(ours), theirs.code, 'the exit code')
  const result = JSON.parse(theirs.stdout)
  const counts = {
    leaks: ours.leaks,
    corruptions: ours.corruptions,
    'total-clusters': ours.totalClusters,
    'allocated-clusters': ours.allocatedClusters,
    'image-end-offset': ours.imageEndOffset,
  }
  // QEMU may leave out counts of 0.
  const expected = Object.keys(counts).map(name => [name, result[name] ?? 0])
  t.same(counts, Object.fromEntries(expected), 'the counts of vimgfs check')
}

/** Neither errors nor leaks. */
export async function isSound(t: Test, image: Named, when = ''): Promise<void> {
  t.equal(await checked(image), 'sound', `qemu-img check: sound ${when}`)
}

/** The disk is, to the byte, what the raw file `model` has. */
export async function isSameDisk(t: Test, image: Named, model: string, what = ''): Promise<void> {
  const options = optionsOf(image)
  const raw = options.length === 0 ? ['-f', 'raw', model] : [`driver=raw,file.filename=${model}`]
  const args = ['compare', ...options, ...raw, nameOf(image)]
  const { code, stdout, stderr } = await attempt('qemu-img', args)
  t.equal(code, 0, `qemu-img compare ${what}: ${stdout}${stderr}`.trim())
}

/** The disk, or one of its snapshots, as qemu-img reads it, in a sparse raw file. */
export async function convert(image: Named, raw: string, snapshot?: string): Promise<string> {
  const from = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`]
  const args = ['convert', ...optionsOf(image), ...from, '-O', 'raw', nameOf(image), raw]
  await run('qemu-img', args)
  return raw
}

/** The same of a cow image, which QEMU does not read any more: as its description has it. */
export function convertCow(image: string, raw: string): string {
  const parent = join(dirname(image), PARENT)
  const file = new MemoryStore(image, readFileSync(image))
  const below = existsSync(parent) ? readFileSync(parent) : undefined
  writeFileSync(raw, judgeCow(file, COW_LAYOUT, below).disk)
  return raw
}

export const COW_LAYOUT: Layout = 'QEMU, x86-64'

/** An empty cow image, over what its folder has under the name of a parent. */
export function createCow(image: string, sizeBytes: number): void {
  const isChild = existsSync(join(dirname(image), PARENT))
  const recipe = { title: '', layout: COW_LAYOUT, sizeBytes, missingBytes: sizeBytes }
  writeFileSync(image, buildCow({ ...recipe, ...(isChild && { parentBytes: sizeBytes }) }))
}

export const snapshot = (image: Named, name: string): Promise<string> =>
  run('qemu-img', ['snapshot', '-c', name, ...optionsOf(image), nameOf(image)])

/** The SHA-256 of a file on a mount. */
export const sha256 = (file: string): Promise<string> => call(HERE, 'sha256', file)

/** A file, also one on a mount, has the bytes of a sparse file that is not on a mount of ours. */
export async function isAsModel(t: Test, file: string, model: string, what: string): Promise<void> {
  t.equal(await call(HERE, 'difference', file, model), -1, `${what}: the first difference`)
}

const PIECE_BYTES = 2 ** 20

/** The same of a file that is not on a mount of ours, in this process. */
export function sumOf(file: string): string {
  const fd = openSync(file, 'r')
  const sum = createHash('sha256')
  const piece = Buffer.allocUnsafe(PIECE_BYTES)
  for (let got = 1; got > 0; ) {
    got = readSync(fd, piece)
    sum.update(piece.subarray(0, got))
  }
  closeSync(fd)
  return sum.digest('hex')
}

/** A file on a mount is, to the byte, what another file is: cheaper than sums of both. */
export async function isSameFile(
  t: Test,
  file: string,
  other: string,
  what: string,
): Promise<void> {
  const { code, stdout, stderr } = await attempt('cmp', [file, other])
  t.equal(code, 0, `${what} ${stdout}${stderr}`.trim())
}

/** Opened anew, in this process, the disk and its snapshots read as these files. */
export async function readsAlike(
  t: Test,
  image: string,
  disk: string,
  snapshots: Readonly<Record<string, string>> = {},
  options: OpenImageOptions = {},
): Promise<void> {
  const opened = await openImage(image, options)
  try {
    const { name } = opened.disk
    const files = { [name]: disk }
    for (const [tag, file] of Object.entries(snapshots)) {
      files[name.replace(/\.raw$/, `@${tag}.raw`)] = file
    }
    for (const [name, file] of Object.entries(files)) {
      const shown = [opened.disk, ...opened.snapshots].find(each => each.name === name)
      const bytes = Buffer.alloc(shown?.sizeBytes ?? 0)
      shown?.read(bytes, 0)
      t.ok(bytes.equals(readFileSync(file)), `${name}, opened anew`)
    }
  } finally {
    opened.close()
  }
}

/** Bytes that a file takes on its disk. */
export const takenBytes = (file: string): number => statSync(file).blocks * 512
