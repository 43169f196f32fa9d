/** What the tests of this folder do with an image besides mounting it, and the peer that decides. */
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import { judgeCow, type Layout } from '../soundness/cow-judge.js'
import { buildCow, PARENT } from '../soundness/cow-kinds.js'
import { call, HERE, type Mount, vimgfs } from '../support/mount.js'
import { attempt, type Finished, run } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

/** Unmounts; resolves when the server has ended. All of it is in the image then. */
export async function unmount({ folder }: Mount): Promise<void> {
  const { code, stderr } = await vimgfs(HERE, ['umount', folder])
  if (code !== 0) throw new Error(`vimgfs umount: exit ${code}\n${stderr}`)
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

/** The same from `vimgfs check`, for formats that QEMU has no check for. */
export async function isSoundForUs(
  t: Test,
  image: string,
  when = '',
  mayLeak = false,
): Promise<void> {
  const verdict = verdictOf(await vimgfs(HERE, ['check', image]))
  const isSound = verdict === 'sound' || (mayLeak && verdict === 'leaks')
  t.ok(isSound, `vimgfs check: ${verdict} ${when}`)
}

const COUNTS = ['leaks', 'corruptions', 'total-clusters', 'allocated-clusters', 'image-end-offset']

/** `vimgfs check` finds what `qemu-img check` finds. */
export async function countsAgree(t: Test, image: string, named: Named = image): Promise<void> {
  const check = ['check', '--output=json']
  const theirs = await attempt('qemu-img', [...check, ...optionsOf(named), nameOf(named)])
  const ours = await vimgfs(HERE, [...check, image])
  t.equal(ours.code, theirs.code, `vimgfs check ${ours.stderr.slice(0, 500)}`.trim())
  const countsOf = (json: string) => {
    const result = JSON.parse(json)
    // QEMU may leave out counts of 0.
    return Object.fromEntries(COUNTS.map(name => [name, result[name] ?? 0]))
  }
  t.same(countsOf(ours.stdout), countsOf(theirs.stdout), 'the counts of vimgfs check')
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

export const sha256 = (file: string): Promise<string> => call(HERE, 'sha256', file)

/** Bytes that a file takes on its disk. */
export const takenBytes = (file: string): number => statSync(file).blocks * 512
