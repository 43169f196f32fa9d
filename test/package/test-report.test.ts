/** The count that decides whether a run has passed: whatever goes wrong in a file must be in it. */
import t from 'tap'
import { Parser } from 'tap-parser'

const module = new URL('../../scripts/test-report.mjs', import.meta.url)
const { FileReport } = await import(module.href)

const PASSING = `# Subtest: a test
    ok 1 - one
    ok 2 - two
    1..2
ok 1 - a test
`
const FAILING = `# Subtest: a test
    ok 1 - one
    not ok 2 - two
      ---
      diff: |
        -1
        +2
      ...
    1..2
not ok 1 - a test
`
const GROUP = `# Subtest: a group
    # Subtest: a
        ok 1 - one
        1..1
    ok 1 - a
    ok 2 - b # SKIP no tool
    # Subtest: c
        1..0
    ok 3 - c
    1..3
ok 1 - a group
`
const cases = [
  { title: 'a test', tap: `${PASSING}1..1\n`, passed: 1 },
  { title: 'a failing test', tap: `${FAILING}1..1\n`, exitCode: 1, failed: 1 },
  { title: 'a group is no test', tap: `${GROUP}1..1\n`, passed: 2, skipped: 1 },
  { title: 'assertions outside of a test', tap: 'ok 1\nok 2\n1..2\n', passed: 1 },
  { title: 'a failing one', tap: 'ok 1\nnot ok 2\n1..2\n', exitCode: 1, failed: 1 },
  { title: 'a crash between tests', tap: PASSING, signal: 'SIGKILL', passed: 1, failed: 1 },
  { title: 'a crash in a test', tap: '# Subtest: a\n    ok 1\n', signal: 'SIGSEGV', failed: 1 },
  {
    title: 'an exit code that no test explains',
    tap: `${PASSING}1..1\n`,
    exitCode: 3,
    passed: 1,
    failed: 1,
  },
  { title: 'an end before the plan', tap: `1..2\n${PASSING}`, passed: 1, failed: 1 },
  { title: 'a process that hangs', tap: `${PASSING}1..1\n`, hangs: 'so', passed: 1, failed: 1 },
  { title: 'a mount is left', tap: `${PASSING}1..1\n`, left: ['a mount'], passed: 1, failed: 1 },
  { title: 'a bail-out', tap: 'Bail out! no disk\n', exitCode: 1, failed: 1 },
  { title: 'no TAP at all', tap: '', failed: 1 },
  { title: 'no tests', tap: '1..0\n', failed: 1 },
  { title: 'a skipped file', tap: '1..0 # SKIP no root\n', skipped: 1 },
  { title: 'work to do counts as skipped', tap: 'not ok 1 - later # TODO\n1..1\n', skipped: 1 },
]
for (const { title, tap, ...given } of cases) {
  t.test(title, async t => {
    const { exitCode = 0, signal = null, hangs, left, ...expected } = given
    const parser = new Parser()
    const report = new FileReport('x.test.ts', parser)
    parser.end(tap)
    report.end({ exitCode, signal, hangs, left })
    const { passed, failed, skipped, text } = report
    const counts = { passed, failed, skipped: skipped.length }
    t.same(counts, { passed: 0, failed: 0, skipped: 0, ...expected })
    t.equal(/✖ x\.test\.ts/.test(text), failed > 0, 'a failure is described')
  })
}

t.test('a failure is shown with where it is and what differs', async t => {
  const parser = new Parser()
  const report = new FileReport('x.test.ts', parser)
  parser.end(FAILING)
  t.equal(report.text, '✖ x.test.ts > a test > two\n    diff:\n        -1\n        +2\n')
})
