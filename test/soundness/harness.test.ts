/** The harness itself: it passes a writer that keeps the order, and catches each way to break it. */
import t from 'tap'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { noise } from '../fixtures/model.js'
import { MemoryStore } from '../support/stores.js'
import { type Kind, settled } from './kinds.js'
import { cutScenarios } from './cut-suite.js'
import { strikeAll } from './fault-suite.js'
import { subjectOf } from './scenario.js'
import { randomSteps } from './steps.js'
import { type Flaw, toyWriter } from './toy-writer.js'

const K = 1024

const small: Kind = {
  ...settled('a small image', {
    image: new MemoryStore(
      'small',
      buildImage({
        clusterBits: 9,
        sizeBytes: 48 * K,
        clusters: new Map([0, 1, 2, 50, 70].map(i => [i, { kind: 'data', bytes: noise(512, i) }])),
      }).bytes(),
    ),
    data: undefined,
    parent: undefined,
    cluster: 512,
  }),
  isRawData: false,
  isLazy: false,
  isHeavy: false,
  folder: '',
}

/** As the suites cut. */
const cuts = (flaw: Flaw | undefined): number =>
  cutScenarios(subjectOf(small, toyWriter(flaw)), { isExpected: flaw !== undefined })

t.test('a writer that keeps the order passes', async t => {
  t.ok(cuts(undefined) > 200)
})

const FLAWS: readonly { flaw: Flaw; message: RegExp }[] = [
  { flaw: 'links early', message: /reads|corrupt|beyond/ },
  { flaw: 'frees early', message: /reads|corrupt/ },
  { flaw: 'counts late', message: /counted/ },
  { flaw: 'forgets to sync', message: /flushed\) reads/ },
  { flaw: 'fills in part', message: /read back/ },
]
for (const { flaw, message } of FLAWS) {
  t.test(`a writer that ${flaw} is caught`, async t => {
    t.throws(() => cuts(flaw), { message })
  })
}

function strike(flaw?: Flaw): number {
  const subject = subjectOf(small, toyWriter(flaw))
  const struck = [1, 2, 4].map(seed => strikeAll(subject, randomSteps(seed, 20, small)).struck)
  return struck.reduce((sum, each) => sum + each, 0)
}

t.test('errors from below: a writer that gives up after a failed sync passes', async t => {
  t.ok(strike() > 40)
})

t.test('errors from below: a writer that trusts a second sync is caught', async t => {
  t.throws(() => strike('trusts a second sync'), { message: /flushed\) reads|corrupt|beyond/ })
})
