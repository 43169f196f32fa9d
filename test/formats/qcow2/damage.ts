/** Images of many features, and bytes of their tables to change, for tests that damage them. */
import fc from 'fast-check'
import type { CheckResult } from '../../../src/formats/check/report.js'
import { noise, prose } from '../../fixtures/model.js'
import { deflated } from '../../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'

const K = 1024
const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })
const SHARED = data(4 * K, 9)
const SMALL_SHARED = data(512, 9)
const LARGE_SHARED = data(16 * K, 9)

const SPECS: ImageSpec[] = [
  {
    clusterBits: 12,
    sizeBytes: 4096 * K,
    clusters: new Map<number, Cluster>([
      [0, data(4 * K, 1)],
      [1, SHARED],
      [2, deflated(prose(4 * K, 3))],
      [3, deflated(prose(4 * K, 4), { gap: 3 })],
      [6, { kind: 'zero' }],
      [7, { kind: 'zero-allocated', bytes: noise(4 * K, 6) }],
      [700, data(4 * K, 5)],
    ]),
    snapshots: [
      { clusters: new Map([[1, SHARED]]), extraBytes: 24 },
      { clusters: new Map([[600, data(4 * K, 8)]]) },
    ],
  },
  {
    version: 2,
    clusterBits: 9,
    sizeBytes: 100 * K,
    clusters: new Map<number, Cluster>([
      [0, data(512, 1)],
      [1, deflated(prose(512, 2))],
      [64, SMALL_SHARED],
      [199, data(512, 4)],
    ]),
    snapshots: [{ extraBytes: 0, clusters: new Map([[64, SMALL_SHARED]]) }],
  },
  {
    clusterBits: 14,
    sizeBytes: 16 * 1024 * K,
    isExtended: true,
    clusters: new Map<number, Cluster>([
      [0, { kind: 'subclusters', allocated: 1, zero: 2, bytes: noise(512, 1) }],
      [1, deflated(prose(16 * K, 2))],
      [2, { kind: 'zero' }],
      [3, LARGE_SHARED],
      [4, { kind: 'zero-allocated', bytes: noise(16 * K, 6) }],
    ]),
    snapshots: [{ clusters: new Map([[3, LARGE_SHARED]]) }],
  },
  ...[0, 1, 2, 3, 5, 6].map(refcountOrder => ({
    clusterBits: 9,
    sizeBytes: 200 * K,
    refcountOrder,
    clusters: new Map(Array.from({ length: 150 }, (_, i) => [i * 2, data(512, i)] as const)),
  })),
]

export const BASES = SPECS.map(spec => {
  const image = buildImage(spec)
  const bytes = image.bytes()
  const cluster = 2 ** (spec.clusterBits ?? 16)
  /** Where tables begin, and how much of each is worth a change. */
  const tables = [
    { at: image.l1At, length: 64 },
    ...image.snapshotL1At.map(at => ({ at, length: 64 })),
    { at: image.l2EntryAt(0), length: Math.min(cluster, 128) },
    { at: image.refcountTableAt, length: 32 },
    { at: Number(bytes.readBigUInt64BE(image.refcountTableAt)), length: Math.min(cluster, 96) },
    { at: image.snapshotsAt, length: image.snapshotsAt > 0 ? 120 : 0 },
  ].filter(({ length }) => length > 0)
  const places = [...(spec.clusters?.values() ?? [])].map(one => image.placeOf(one) ?? bytes.length)
  return { spec, bytes, tables, dataAt: Math.min(...places) }
})

/**
 * Whether something points into the tables that must not: then a repair of one is a change of the other,
 * and of what reads through it.
 */
export function liesOverTables({ findings }: CheckResult, { base }: Damaged): boolean {
  const { dataAt } = BASES[base] as (typeof BASES)[number]
  return findings.some(
    ({ at, message }) => at < dataAt && /references ([2-9]|\d\d)|shares its cluster/.test(message),
  )
}

export interface Damaged {
  readonly base: number
  readonly changes: readonly { table: number; at: number; value: number; isBit: boolean }[]
  /** How much of the file's end is cut off, in thousandths. */
  readonly cut: number
}

export const damaged: fc.Arbitrary<Damaged> = fc.record({
  base: fc.nat(BASES.length - 1),
  changes: fc.array(
    fc.record({ table: fc.nat(99), at: fc.nat(127), value: fc.nat(255), isBit: fc.boolean() }),
    { minLength: 1, maxLength: 4 },
  ),
  cut: fc.oneof({ weight: 9, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(500) }),
})

export function damagedBytes({ base, changes, cut }: Damaged): Buffer {
  const { bytes, tables } = BASES[base] as (typeof BASES)[number]
  const damaged = Buffer.from(bytes)
  for (const { table, at, value, isBit } of changes) {
    const { at: start, length } = tables[table % tables.length] as (typeof tables)[number]
    const place = start + (at % length)
    damaged[place] = isBit ? (damaged[place] as number) ^ (1 << (value & 7)) : value
  }
  return damaged.subarray(0, damaged.length - Math.floor((damaged.length * cut) / 1000))
}
