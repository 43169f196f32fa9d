/**
 * Counts and describes the TAP output of one test file.
 *
 * A t.test() counts as a test if it has assertions of its own, or nothing inside; not if it only groups tests. The file
 * itself counts if it asserts outside of any t.test().
 */
export class FileReport {
  passed = 0
  failed = 0
  skipped = []
  /** Describes what failed, for people. */
  text = ''
  #parser
  #file
  #output = ''

  constructor(file, parser) {
    this.#file = this.#group(parser, [file])
    this.#parser = parser
    parser.on('extra', text => {
      this.#output += text
    })
    parser.on('bailout', reason => this.#fail(this.#file.path, { bailout: reason }))
  }

  /** The process has ended, and what it did not say itself may still make it a failure. */
  end({ exitCode, signal, hangs, left = [] }) {
    const { path, successes, failures } = this.#file
    const { ok, plan } = this.#parser.results
    if (failures > 0) this.failed++
    else if (successes > 0) this.passed++

    const isSilent = this.passed + this.failed + this.skipped.length === 0
    const reason = plan.skipReason || 'no tests found'
    if (left.length > 0) this.#fail(path, { left: left.join('\n') })
    if (hangs) {
      this.#fail(path, { reason: hangs })
    } else if (signal || (this.failed === 0 && (!ok || exitCode !== 0))) {
      this.#fail(path, { exitCode, signal, tap: this.#parser.failures[0]?.tapError })
    } else if (isSilent && reason === 'no tests found') {
      this.#fail(path, { reason })
    } else if (isSilent) {
      this.#skip(path, reason)
    }
  }

  /** The output of the file besides its results. */
  get output() {
    return this.#output
  }

  /** Follows a parser, and the parsers that it makes for nested tests. */
  #group(parser, path) {
    const counts = { successes: 0, failures: 0, skips: 0, children: 0 }
    const group = { ...counts, path, failedBefore: this.failed }
    let child
    parser.on('child', childParser => {
      group.children++
      child = this.#group(childParser, [...path, childParser.name])
    })
    parser.on('assert', result => {
      // The result of a child comes right after the child.
      if (child) this.#endGroup(child, result)
      else this.#assertion(group, result)
      child = undefined
    })
    return group
  }

  #assertion(group, { ok, name, skip, todo, diag, tapError }) {
    const path = [...group.path, name]
    if (skip || todo) {
      group.skips++
      this.#skip(path, skip || todo)
    } else if (ok && !tapError) {
      group.successes++
    } else {
      group.failures++
      this.#describe(path, diag ?? { tapError })
    }
  }

  #endGroup({ path, successes, failures, skips, children, failedBefore }, result) {
    const isEmpty = successes + failures + skips + children === 0
    if (result.skip || result.todo) this.#skip(path, result.skip || result.todo)
    else if (failures > 0) this.failed++
    else if (!result.ok && this.failed === failedBefore) this.#fail(path, result.diag)
    else if (successes > 0 || isEmpty) this.passed++
  }

  #skip(path, reason) {
    this.skipped.push(`${path.join(' > ')}${reason === true ? '' : `: ${reason}`}`)
  }

  #fail(path, details) {
    this.failed++
    this.#describe(path, details)
  }

  /** Adds tap's diagnostics without repetitions. The stack, or else `at`, names the place. */
  #describe(path, details) {
    const { source, tapCaught, test, at, ...rest } = details ?? {}
    if (at && !rest.stack) rest.at = `${at.fileName}:${at.lineNumber}:${at.columnNumber}`
    if (rest.cause?.message) rest.cause = `${rest.cause.message}\n${rest.cause.stack ?? ''}`
    this.text += `✖ ${path.join(' > ')}\n`
    for (const [key, value] of Object.entries(rest)) {
      if (value === null || value === undefined) continue
      const text = typeof value === 'string' ? value.trimEnd() : JSON.stringify(value, null, 2)
      this.text += text.includes('\n')
        ? `    ${key}:\n${indented(text)}\n`
        : `    ${key}: ${text}\n`
    }
  }
}

function indented(text) {
  return text.replace(/^(?=.)/gm, '        ')
}
