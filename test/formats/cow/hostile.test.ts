/**
 * Cow images that nobody made in good faith, and damaged ones: one line that says what, or a mount that gives
 * errors where the damage is; never a hang, nor memory by an image's word.
 */
import { symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import {
  buildCow,
  type BuiltCow,
  type CowSpec,
  LAYOUTS,
  type Layout,
} from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { Watchdog, type Watched } from '../../support/watchdog.js'
import { SECTOR, sectorsOf } from './images.js'

const MAX_GROWTH_BYTES = 150 * 2 ** 20
/** In a long test 30 times as many. */
const TRIES = 250
const SIZE = 401 * SECTOR
const BASE = 'base.raw'

const honest = (layout: Layout): CowSpec => ({
  layout,
  sizeBytes: SIZE,
  sectors: sectorsOf([
    [0, 3],
    [200, 2],
    [400, 1],
  ]),
  backing: BASE,
})

interface Case {
  readonly title: string
  readonly layout: Layout
  readonly spec?: Partial<CowSpec>
  readonly damage?: (file: Buffer, built: BuiltCow) => Buffer | undefined
  /** How much longer the file is, by a hole. */
  readonly moreBytes?: number
  /** What opening must say. Without it the image opens. */
  readonly says?: RegExp
  readonly code?: string
  /** Whether a read, a seek or a count meets the damage. */
  readonly isDamaged?: boolean
}

const u64 = (at: number, value: bigint) => (file: Buffer) => {
  file.writeBigUInt64BE(value, at)
  return file
}
const named = (layout: Layout, backing: string, says: RegExp, code: string): Case => ({
  title: `a backing file named ${JSON.stringify(backing)}`,
  layout,
  spec: { backing },
  says,
  code,
})

const cases: Case[] = [
  ...LAYOUTS.map(layout => ({ title: `nothing is false: ${layout}`, layout })),
  ...LAYOUTS.map(layout => ({
    title: `the file ends within a sector that is marked: ${layout}`,
    layout,
    damage: (file: Buffer, built: BuiltCow) => file.subarray(0, built.placeOf(200) + 10),
    isDamaged: true,
  })),
  ...LAYOUTS.map(layout => ({
    title: `the file ends within the bitmap: ${layout}`,
    layout,
    damage: (file: Buffer, built: BuiltCow) => file.subarray(0, built.bitmapAt + 20),
    says: /bitmap ends at \d+, beyond the end of the file|header is cut off/,
    code: 'CORRUPT',
  })),
  ...LAYOUTS.map(layout => ({
    title: `all bits are set: ${layout}`,
    layout,
    damage: (file: Buffer, built: BuiltCow) => file.fill(0xff, built.bitmapAt, built.bitmapAt + 51),
  })),
  {
    title: 'a disk of 2^52 bytes in a file of 2^41',
    layout: 'qemu-x86-64',
    damage: u64(1040, 1n << 52n),
    moreBytes: 2 ** 41,
  },
  {
    title: 'a disk of 2^43 bytes, its bitmap a hole',
    layout: 'uml-3',
    damage: u64(12, 1n << 43n),
    moreBytes: 2 ** 32,
  },
  {
    title: 'a disk of 2^52 + 512 bytes',
    layout: 'qemu-i386',
    damage: u64(1036, (1n << 52n) + 512n),
    says: /a disk of 4503599627371008 bytes, above/,
    code: 'CORRUPT',
  },
  {
    title: 'a disk of 2^64 - 1 bytes',
    layout: 'uml-3-broken',
    damage: u64(16, (1n << 64n) - 1n),
    says: /the disk is too large: it has 18446744073709551615 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a disk of no bytes',
    layout: 'qemu-x86-64',
    spec: { sizeBytes: 0, sectors: new Map() },
  },
  { title: 'a disk of one byte', layout: 'uml-3', spec: { sizeBytes: 1, sectors: new Map() } },
  named('uml-3', '/etc/shadow', /"\/etc\/shadow" lies outside the image's folder/, 'REFUSED'),
  named('qemu-i386', 'nbd:localhost:10809', /is not a plain path/, 'UNSUPPORTED'),
  named('qemu-x86-64', 'json:{"driver":"file"}', /is not a plain path/, 'UNSUPPORTED'),
  named('uml-2', '../x', /outside the image's folder/, 'REFUSED'),
  named('qemu-x86-64', 'a\nb\x1b[2Jc', /a\\x0ab\\x1b\[2Jc/, 'MISSING'),
  named('qemu-x86-64', 'x'.repeat(1000), /cannot be opened/, 'MISSING'),
  named('qemu-x86-64', 'itself.cow', /the chain is a loop/, 'CORRUPT'),
]

const watchdog = new Watchdog(t)

t.test('one fault each', async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, BASE), noise(SIZE, 99))
  symlinkSync('disk.cow', join(folder, 'itself.cow'))
  for (const { title, layout, spec, damage, moreBytes, says, code, isDamaged } of cases) {
    await t.test(title, async t => {
      const built = buildCow({ ...honest(layout), ...spec })
      const image = join(folder, 'disk.cow')
      const bytes = damage?.(Buffer.from(built.bytes), built) ?? built.bytes
      writeFileSync(image, bytes)
      if (moreBytes !== undefined) truncateSync(image, bytes.length + moreBytes)
      const outcome = await watchdog.exercise(image)
      t.same(problemsOf(outcome), [])
      t.ok(outcome.grownBytes < MAX_GROWTH_BYTES, `grew by ${outcome.grownBytes} bytes`)
      if (says) {
        t.match(outcome.refusal, { line: says, code })
        t.ok(outcome.refusal?.line.startsWith(`${image}: `), 'names the file')
        t.ok(outcome.refusal?.line.includes('; '), 'says what to do')
      } else {
        t.equal(outcome.refusal, undefined, 'opens')
        t.equal(outcome.damages > 0, isDamaged ?? false, `${outcome.damages} errors met`)
      }
    })
  }
})

function problemsOf({ hangs, unexpected, milliseconds }: Watched): string[] {
  return hangs ? [`no answer after ${Math.round(milliseconds)} ms`] : [...unexpected]
}

const telling = fc.oneof(
  { weight: 3, arbitrary: fc.nat(2000).map(BigInt) },
  { weight: 2, arbitrary: fc.nat(63).map(bit => 1n << BigInt(bit)) },
  fc.constantFrom(0xffn, 0x7fffffffn, 0x80000000n, 0xffffffffn, (1n << 53n) + 1n, (1n << 64n) - 1n),
)
const change = fc.record({
  region: fc.nat(20),
  offset: fc.nat(24),
  width: fc.constantFrom(1, 4, 8),
  value: telling,
})
const size = fc.option(fc.oneof(fc.nat(SIZE + 20_000), fc.constantFrom(2 ** 32, 2 ** 40, 2 ** 43)))

for (const layout of LAYOUTS) {
  t.test(`fields changed: ${layout}`, async t => {
    const folder = tempFolder(t)
    writeFileSync(join(folder, BASE), noise(SIZE, 99))
    const image = join(folder, 'disk.cow')
    const { bytes: good, bitmapAt } = buildCow(honest(layout))
    const head = layout === 'uml-2' ? 4104 : layout.startsWith('uml') ? 4 : 1032
    const regions = [0, 4, head, head, head + 8, head + 12, bitmapAt, bitmapAt + 25, bitmapAt + 48]
    /** The one that the end of the time came into goes on. */
    let last: Promise<unknown> = Promise.resolve()
    const runs = await holds(
      fc.tuple(fc.array(change, { maxLength: 4 }), size),
      TRIES,
      async ([changes, sizeBytes]) => {
        const bytes = Buffer.from(good)
        for (const { region, offset, width, value } of changes) {
          const at = (regions[region % regions.length] as number) + offset
          for (let i = 0; i < width; i++) {
            bytes[at + i] = Number((value >> BigInt(8 * (width - 1 - i))) & 0xffn)
          }
        }
        await last
        writeFileSync(image, bytes)
        if (sizeBytes !== null) truncateSync(image, sizeBytes)
        const outcome = watchdog.exercise(image, { format: 'cow' })
        last = outcome
        const problems = problemsOf(await outcome)
        if (problems.length > 0) throw new Error(problems[0])
      },
    )
    await last
    t.comment(`${runs} images`)
    t.ok(runs >= TRIES, `${runs} images`)
  })
}
