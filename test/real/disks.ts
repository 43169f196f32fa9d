/** What the tests of this folder do with an image besides mounting it, and who has the last word. */
import { statSync } from 'node:fs'
import type { Test } from 'tap'
import { call, HERE, type Mount, vimgfs } from '../support/mount.js'
import { attempt, run } from '../support/run.js'
import { LIMIT_MS } from './size.js'

const LIMIT = { timeout: LIMIT_MS }

/** Unmounts; resolves when the server has ended. All of it is in the image then. */
export async function unmount({ folder }: Mount): Promise<void> {
  const { code, stderr } = await vimgfs(HERE, ['umount', folder], LIMIT)
  if (code !== 0) throw new Error(`vimgfs umount: exit ${code}\n${stderr}`)
}

/** What `qemu-img check` says of an image that nobody has open: sound, leaks, or worse. */
export async function checked(image: string): Promise<'sound' | 'leaks' | string> {
  const { code, stdout, stderr } = await attempt('qemu-img', ['check', image], LIMIT)
  if (code === 0) return 'sound'
  return code === 3 ? 'leaks' : `exit ${code}\n${stderr.slice(-3000)}${stdout.slice(-3000)}`
}

const COUNTS = ['leaks', 'corruptions', 'total-clusters', 'allocated-clusters', 'image-end-offset']

/** `vimgfs check` finds what `qemu-img check` finds. */
export async function countsAgree(t: Test, image: string): Promise<void> {
  const args = ['check', '--output=json', image]
  const [theirs, ours] = [await attempt('qemu-img', args, LIMIT), await vimgfs(HERE, args, LIMIT)]
  t.equal(ours.code, theirs.code, `vimgfs check ${ours.stderr.slice(0, 500)}`.trim())
  const countsOf = (json: string) => {
    const result = JSON.parse(json)
    // What is none may be left out.
    return Object.fromEntries(COUNTS.map(name => [name, result[name] ?? 0]))
  }
  t.same(countsOf(ours.stdout), countsOf(theirs.stdout), 'the counts of vimgfs check')
}

/** Neither errors nor leaks. */
export async function isSound(t: Test, image: string, when = ''): Promise<void> {
  t.equal(await checked(image), 'sound', `qemu-img check: sound ${when}`)
}

/** The disk is, to the byte, what the raw file `model` has. */
export async function isSameDisk(t: Test, image: string, model: string, what = ''): Promise<void> {
  const args = ['compare', '-f', 'raw', model, image]
  const { code, stdout, stderr } = await attempt('qemu-img', args, LIMIT)
  t.equal(code, 0, `qemu-img compare ${what}: ${stdout}${stderr}`.trim())
}

/** The disk, or one of its snapshots, as qemu-img reads it, in a sparse raw file. */
export async function convert(image: string, raw: string, snapshot?: string): Promise<string> {
  const from = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`]
  await run('qemu-img', ['convert', ...from, '-O', 'raw', image, raw], LIMIT)
  return raw
}

export const snapshot = (image: string, name: string): Promise<string> =>
  run('qemu-img', ['snapshot', '-c', name, image], LIMIT)

export const sha256 = (file: string): Promise<string> => call(HERE, 'sha256', file)

/** Bytes that a file takes on its disk. */
export const takenBytes = (file: string): number => statSync(file).blocks * 512
