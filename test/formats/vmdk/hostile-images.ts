/** What the tests of hostile VMDK images have in common. */
import { readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { ImageError } from '../../../src/errors.js'
import type { OpenOptions } from '../../../src/image/opening/chain.js'
import { buildExtent, type ExtentSpec } from '../../fixtures/vmdk-builder.js'
import { openImage } from '../../support/image.js'
import type { Watchdog, Watched } from '../../support/watchdog.js'

/** What a descriptor can name all of its disk with, without a file. */
export const ZEROS = 'RW 2048 ZERO'

export interface DescriptorSpec {
  readonly cid?: string
  /** The CID that the parent is to have, and where it is. */
  readonly parent?: { readonly cid?: string; readonly hint: string }
  readonly extents?: readonly string[]
  readonly more?: string
}

export const descriptor = ({ cid, parent, extents, more }: DescriptorSpec = {}): string =>
  [
    '# Disk DescriptorFile',
    'version=1',
    'encoding="UTF-8"',
    `CID=${cid ?? '1234abcd'}`,
    `parentCID=${parent ? (parent.cid ?? '1234abcd') : 'ffffffff'}`,
    'createType="custom"',
    ...(parent ? [`parentFileNameHint="${parent.hint}"`] : []),
    '',
    ...(extents ?? [ZEROS]),
    '',
    'ddb.adapterType = "lsilogic"',
    more ?? '',
  ].join('\n')

/** A sparse extent with its descriptor within. */
export const monolithic = (spec: Partial<ExtentSpec>, text: DescriptorSpec = {}) =>
  buildExtent({
    capacitySectors: 2048,
    grainSectors: 16,
    descriptor: descriptor({ extents: ['RW 2048 SPARSE "disk.vmdk"'], ...text }),
    ...spec,
  })

export type Files = Readonly<Record<string, string | Buffer>>

export function writeFiles(folder: string, files: Files): void {
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content)
}

/** The files that this process has open; descriptors without a file have no path. */
function openFiles(): string[] {
  const links = readdirSync('/proc/self/fd').map(fd => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return ''
    }
  })
  return links.filter(link => /^\/(?!dev\/|proc\/)/.test(link)).sort()
}

/** Uses `image` as a mount does; returns what went wrong that must not go wrong for any image. */
export async function useHostile(
  watchdog: Watchdog,
  image: string,
  options: OpenOptions = {},
  limitMs?: number,
): Promise<Watched & { problems: string[] }> {
  const before = openFiles()
  const outcome = await watchdog.exercise(image, options, limitMs)
  // Separators of lines would break the report.
  const problems = outcome.unexpected.map(each => each.replace(/[\u2028\u2029]/g, '\\\\u2028'))
  if (outcome.hangs) {
    problems.push(`no answer after ${Math.round(outcome.milliseconds)} ms`)
    return { ...outcome, problems }
  }
  if (outcome.refusal?.code === '') problems.push('the refusal is no ImageError')
  const left = openFiles()
  if (left.join('\n') !== before.join('\n')) {
    const surplus = left.filter(file => !before.includes(file))
    problems.push(`files are left open: ${surplus.join(', ')}`)
  }
  return { ...outcome, problems }
}

/** What opening warns of; checks what else the mount's catalog says on the way. */
export function catalogued(t: Test, image: string, options: OpenOptions = {}): readonly string[] {
  try {
    const { chain, entries, warnings, close } = openImage(image, options)
    close()
    t.ok(chain.layers.length <= 512, 'no more layers than the caches tell apart')
    const isFit = (name: string) => Buffer.byteLength(name) <= 255 && !/[/\x00-\x1f]/.test(name)
    const names = entries.map(({ name }) => name)
    t.same(
      names.filter(name => !isFit(name)),
      [],
      'file names are fit',
    )
    t.equal(new Set(names).size, names.length, 'file names are distinct')
    const isTime = ({ seconds, nanoseconds }: { seconds: number; nanoseconds: number }) =>
      // The kernel gets them as unsigned numbers.
      Number.isSafeInteger(seconds) &&
      seconds >= 0 &&
      Number.isInteger(nanoseconds) &&
      nanoseconds >= 0 &&
      nanoseconds < 1e9
    t.same(
      entries.map(({ modified }) => modified).filter(time => !isTime(time)),
      [],
      'times are fit',
    )
    return warnings
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return []
  }
}
